"""The result of `bringup driver check` as a page, and for CI as JUnit."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from bringup.drivers.check import sentence
from bringup.report.html import render

_ORDER = {"wrong": 0, "right": 1, "refused": 2}


def page(result: dict[str, Any]) -> str:
    """Write the page."""
    rows = sorted(result["operators"], key=lambda line: (_ORDER[line["verdict"]], line["op"], line["dtype"]))
    return render(
        "driver.html",
        title=f"driver {result['driver']}: bringup",
        driver=result["driver"],
        counts=sentence(result),
        checks=result["checks"],
        on_device=[line for line in rows if line["verdict"] != "refused"],
        refused=[line for line in rows if line["verdict"] == "refused"],
    )


def junit(result: dict[str, Any]) -> str:
    """Write JUnit's XML: a test per operator and dtype, and per other check. What runs on the host is skipped."""
    checks = [{"op": line["check"], "dtype": "", **line, "reason": line["evidence"]} for line in result["checks"]]
    lines = [*checks, *result["operators"]]
    counts = {
        "tests": len(lines),
        "failures": sum(line["verdict"] == "wrong" for line in lines),
        "skipped": sum(line["verdict"] == "refused" for line in lines),
    }
    suite = ElementTree.Element("testsuite", {"name": "bringup driver check"} | {k: str(v) for k, v in counts.items()})
    for line in lines:
        name = f"{line['op']} {line['dtype']}".strip()
        case = ElementTree.SubElement(suite, "testcase", classname=_printable(result["driver"]), name=_printable(name))
        if line["verdict"] != "right":
            kind = "failure" if line["verdict"] == "wrong" else "skipped"
            ElementTree.SubElement(case, kind, message=_printable(line["reason"]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return "".join(char if char.isprintable() else " " for char in text)
