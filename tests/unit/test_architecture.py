"""What import-linter's contracts do not say: no two files import each other, in whatever way."""

from __future__ import annotations

import graphlib

import grimp


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("tunesmith")
    order = graphlib.TopologicalSorter({name: graph.find_modules_directly_imported_by(name)
                                        for name in graph.modules})
    order.prepare()  # raises CycleError, which names the files
