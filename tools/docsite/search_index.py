"""Add the definitions to the search index of a built site, before whatever uses them.

Quarto runs this after it has rendered the pages. Its own index has one record per section of the
second level; a function deserves one of its own.
"""
import json
import os
from pathlib import Path


def with_definitions(records, definitions):
    "The records of a search index, those of definitions first."
    own = {definition["objectID"] for definition in definitions}
    return definitions + [record for record in records if record["objectID"] not in own]


def main():
    "Rewrite the index in the folder where Quarto put the site."
    index = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", "_docs")) / "search.json"
    if not index.exists():
        return
    definitions = json.loads(Path("_definitions.json").read_text(encoding="utf-8"))
    records = json.loads(index.read_text(encoding="utf-8"))
    text = json.dumps(with_definitions(records, definitions), ensure_ascii=False, indent=1)
    index.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
