"""The reference pages that are generated from the code when the site is built.

Each module of this package writes one part of `docs/reference/`. A page is plain Markdown, so that
the tests can read it without building the site.
"""
