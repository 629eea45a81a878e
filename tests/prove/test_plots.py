"""Plots of evidence are SVG documents with all that was measured in them."""

from xml.etree import ElementTree

from tests.prove.plots import svg


def test_every_point_can_be_read_and_lies_within():
    """Each has a title that says its numbers; names with marks in them are text."""
    lines = {"on <1>": [(0.5, 10.0), (5.0, 23.4)], "off": [(0.5, 10.0), (5.0, 0.0)]}

    root = ElementTree.fromstring(svg("Answers & loads", "load", lines))

    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    titles = [one.findtext(f"{space}title") for one in circles]
    assert titles == ["on <1>: 10 at 0.5", "on <1>: 23.4 at 5", "off: 10 at 0.5", "off: 0 at 5"]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 < float(one.attrib["cx"]) <= width and 0 < float(one.attrib["cy"]) <= height for one in circles)
