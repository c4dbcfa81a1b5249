"""Where text comes from: embedded texts, files, Hugging Face data sets, and mixtures of them."""

from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.embedded import EmbeddedCorpus
from lmlab.data.corpus.huggingface import HuggingFaceCorpus
from lmlab.data.corpus.jsonl import JsonlCorpus
from lmlab.data.corpus.mixture import MixtureCorpus
from lmlab.data.corpus.opening import open_corpus
from lmlab.data.corpus.parquet import ParquetCorpus
from lmlab.data.corpus.text import TextCorpus
from lmlab.data.corpus.tuples import TupleCorpus

__all__ = [
    "Corpus",
    "Document",
    "EmbeddedCorpus",
    "HuggingFaceCorpus",
    "JsonlCorpus",
    "MixtureCorpus",
    "ParquetCorpus",
    "TextCorpus",
    "TupleCorpus",
    "open_corpus",
]
