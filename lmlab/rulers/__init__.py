"""Measurements that are comparable across objectives, and the anchors they are read beside."""
