"""Data: any text a person has, as the examples of each optimizer step.

* files, text, records, hub   bytes to lines, lines to records
* chat, render                records to text, with the trained part marked
* reading                     the four above as one pass over a source
* tokens, store               text to tokens, once, in a cache that all processes share
* split, ranges, sides        which examples train and which validate, and how long ones are cut
* mixing, packing, batches    the examples of each step, and the rows they travel in
* request, source, report     the request, its answer, and what a person should know about it
"""

from llmexp.data.batches import Batch, Batches, MicroBatch, to_measure
from llmexp.data.examples import Example, Examples
from llmexp.data.packing import can_pack
from llmexp.data.report import DataReport
from llmexp.data.request import load
from llmexp.data.source import Corpus, Source

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "DataReport",
    "Example",
    "Examples",
    "MicroBatch",
    "Source",
    "can_pack",
    "load",
    "to_measure",
]
