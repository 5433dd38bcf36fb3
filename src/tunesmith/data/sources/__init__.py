"""Where rows come from: local files, or a data set on the Hub, or several. A new kind of source is one file
here.
"""

from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.data.sources.local import local_files
from tunesmith.data.sources.opening import open_source, open_sources, read_source
from tunesmith.data.sources.source import Source
from tunesmith.data.sources.splits import NoSuchSplit

__all__ = ["BadRows", "NoSuchSplit", "Source", "local_files", "open_source", "open_sources",
           "read_source"]
