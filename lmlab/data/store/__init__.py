"""The tokenised corpus: built once by `build_store`, opened as `TokenStore`."""

from lmlab.data.store.building import build_store
from lmlab.data.store.reading import FileRecord, StoreConfig, StoreHeader, TokenStore

__all__ = ["FileRecord", "StoreConfig", "StoreHeader", "TokenStore", "build_store"]
