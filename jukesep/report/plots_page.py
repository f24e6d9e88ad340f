"""The template of `dvc plots show`. DVC's own loads Vega from the network, this one embeds it.

`python -m jukesep.report.plots_page` writes .dvc/plots/offline.html from vl-convert's bundle of
Vega, Vega-Lite and Vega-Embed. Run it after an update of vl-convert-python or a change below.
The setting plots.html_template in .dvc/config is the page's path, relative to .dvc/.
"""

from __future__ import annotations

from pathlib import Path

from ..base.files import write_text

FOLDER = Path(".dvc/plots")
PAGE = FOLDER / "offline.html"
LICENCES = FOLDER / "offline.licenses.txt"
# The version of the templates' $schema; DVC's own page and its editor plug-ins have v5.
VEGA_LITE = "5.21"

# DVC puts the plots at {plot_divs}. Its {scripts} is left out, because it loads from the network.
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>jukesep: plots</title>
<!--
%(licences)s
-->
<style>
  body { font-family: system-ui, sans-serif; margin: 2rem; color: #222; }
  header { max-width: 60rem; }
  img { max-width: 100%%; }
  .vega-embed.vega-embed { display: block; width: max-content; margin: 2.5rem 0 0; }
</style>
<script>%(bundle)s</script>
</head>
<body>
<header>
<h1>jukesep: plots</h1>
<p>All scores are in dB, higher is better. Point at a mark for its numbers; the menu beside a plot
saves it as a picture. <code>docs/results.md</code> holds the tables and how to read them.
With <code>dvc plots diff</code>, dashes or rows tell the revisions apart.</p>
</header>
{plot_divs}
</body>
</html>
"""


def page(licences: str) -> str:
    """The template's text, with the licences of the embedded libraries."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return TEMPLATE % {"licences": licences.strip(), "bundle": bundle.strip()}


if __name__ == "__main__":
    write_text(PAGE, page(LICENCES.read_text(encoding="utf-8")))
