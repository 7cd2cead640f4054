"""docs/methods.md says what the catalog says."""

from dataclasses import fields

from training import catalog, methods_page


def test_it_is_the_page_that_the_catalog_makes() -> None:
    """When this fails: `python -m training.methods_page`."""
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.render()


def test_it_has_every_method_with_formula_use_and_parameters() -> None:
    page = methods_page.render()
    for method in catalog.METHODS.values():
        section = page.partition(f"## {method.label}: `{method.name}`\n")[2].partition("\n## ")[0]
        assert method.use in section
        assert catalog.SOURCES[method.source] in section
        assert "arXiv" in section or "(19" in section or "2023" in section
        for parameter in fields(method.params):
            assert f"| `{parameter.name}` |" in (page if parameter.name in dir(catalog.Common) else section)
    assert all(f"(`{preset.name}`)" in page for preset in catalog.PRESETS.values())


def test_it_names_only_methods_that_there_are() -> None:
    """Of the table by which people choose."""
    rows = [line for line in methods_page.HEAD.splitlines() if line.startswith("| ") and "`" in line]
    named = {word.strip("`") for row in rows for word in row.split() if word.startswith("`")}
    named = {word.strip("`,:;") for word in named}
    assert named <= {*catalog.METHODS, "anchor", "beta"}
    assert len(named & set(catalog.METHODS)) > 8
