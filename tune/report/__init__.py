"""`write_report`: a study as one self-contained page, Markdown and CSVs. `artefact` writes it, `page` draws it."""
