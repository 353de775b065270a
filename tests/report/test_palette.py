"""Colours that people can tell from the page's background (WCAG 2.2, 1.4.3 and 1.4.11)."""

import pytest

from bringup.report import palette


def contrast(one: str, other: str = palette.WHITE) -> float:
    """Return the contrast ratio of two colours, by WCAG's formula."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_black_on_white_has_the_largest_contrast() -> None:
    assert contrast("#000000") == pytest.approx(21)


@pytest.mark.parametrize("name", palette.FAMILY)
def test_families_stand_out(name: str) -> None:
    assert contrast(palette.FAMILY[name]) >= 3


def test_series_stand_out_and_differ() -> None:
    colours = [palette.series(number) for number in range(17)]
    assert min(map(contrast, colours)) >= 3 and len(set(colours)) == 16 and colours[16] == colours[0]


@pytest.mark.parametrize("score", [1.0, 0.7, 0.1, None])
def test_white_text_on_a_badge_is_readable(score: float | None) -> None:
    assert contrast(palette.verdict(score)) >= 4.5


@pytest.mark.parametrize("name", ["ink", "dim", "chip"])
@pytest.mark.parametrize("back", ["back", "soft"])
def test_text_is_readable(name: str, back: str) -> None:
    assert contrast(palette.PAGE[name], palette.PAGE[back]) >= 4.5


@pytest.mark.parametrize("name", palette.PAGE)
def test_dark_page_has_the_same_colours(name: str) -> None:
    assert name in palette.DARK
    least = 4.5 if name in ("ink", "dim", "chip") else 3 if name not in ("line", "back", "soft") else 1
    assert contrast(palette.DARK[name], palette.DARK["back"]) >= least


@pytest.mark.parametrize("colours", [palette.FAMILY, palette.HOST, palette.MEMORY], ids=["family", "host", "memory"])
def test_charts_stand_out_on_a_light_and_a_dark_page(colours: dict[str, str]) -> None:
    for colour in colours.values():
        assert contrast(colour) >= 3
        assert contrast(palette.dark(colour), palette.DARK["back"]) >= 3


def test_series_stand_out_on_a_dark_page() -> None:
    colours = [palette.dark(palette.series(number)) for number in range(16)]
    assert min(contrast(colour, palette.DARK["back"]) for colour in colours) >= 3


def test_kinds_of_memory_have_a_colour() -> None:
    from bringup.recording.rows import OWNERS

    assert set(palette.MEMORY) == set(OWNERS)
