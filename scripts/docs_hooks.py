"""Hooks of MkDocs: turns links to files outside `docs` into plain text.

The site holds the documents only. On the project's hosting the same links lead to the
files; scripts/check-docs checks that the files exist.
"""

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match) -> str:
        text, target = match[1], match[2]
        if "://" in target or target.startswith(("mailto:", "/")):
            return match[0]
        outside = posixpath.normpath(posixpath.join(folder, target)).startswith("..")
        return text if outside else match[0]

    return LINK.sub(replaced, markdown)
