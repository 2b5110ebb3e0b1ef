"""Links in the text of a page: names, works, files of the repository."""
import posixpath
import re

from .book import ON_SITE, REFERENCES

# What is left as it is, then what may become a link.
TOKEN = re.compile(
    r"""
    (?P<kept>
        ^(?P<fence>```+|~~~+).*?^(?P=fence)[ ]*$  # a block of code
      | ^\#+[ ].*?$                               # a heading
      | \$\$.*?\$\$ | (?<!\\)\$[^$\n]+\$          # mathematics
      | <!--.*?-->
    )
  | (?P<link>\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\))
  | (?P<code>`+(?P<name>[^`\n]+)`+)
  | (?P<work>[A-Z][\w'’-]+(?:\ et\ al\.|\ and\ [A-Z][\w'’-]+)?,?\ (?:19|20)\d\d\b)
    """,
    flags=re.M | re.S | re.X,
)


def relative(page, target):
    "A link from a page to a place given from the root of the site."
    path, _, anchor = target.partition("#")
    if path == page:
        return f"#{anchor}"
    start = posixpath.dirname(page) or "."
    return posixpath.relpath(path, start) + (f"#{anchor}" if anchor else "")


def repository_link(text, page, target, book):
    "A link to a file of the repository: on the site, at the repository's address, or plain text."
    path, _, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join("nbs", posixpath.dirname(page), path))
    if not (book.root / place).exists():
        return f"[{text}]({target})"  # the check will find it
    on_site = place in ON_SITE
    if on_site or (place.startswith("nbs/") and (book.root / place).is_file()):
        where = place if on_site else place.removeprefix("nbs/")
        # CONTRIBUTING.md lies beside nbs/, but at the root of the site
        start = page.removeprefix("../")
        return f"[{text}]({relative(start, where + (f'#{anchor}' if anchor else ''))})"
    address = book.options.source(place)
    return f"[{text}]({address})" if address else text


def linked(text, page, book):
    "The text of a page, where names, works and files of the repository are links."
    seen = set()
    here = page.removeprefix("../")

    def replaced(match):
        if match["link"]:
            target = match["target"]
            if target.startswith("/"):
                return f"[{match['text']}]({relative(here, target[1:])})"
            if re.match(r"\w+:|#", target):
                return match[0]
            return repository_link(match["text"], page, target, book)
        name = match["name"] or match["work"]
        if match["kept"] or name in seen:
            return match[0]
        seen.add(name)
        return name_link(match, here, book) if match["code"] else work_link(match, here, book)

    return TOKEN.sub(replaced, text)


def name_link(match, page, book):
    "A backticked name as a link to its definition, if it has one."
    found = book.find(match["name"], page)
    if found is None:
        return match[0]
    to, anchor = found
    return f"[{match[0]}]({relative(page, to + (f'#{anchor}' if anchor else ''))})"


def work_link(match, page, book):
    "Authors and a year as a link to the bibliography, if the work stands there."
    key = book.citations.get(match["work"].replace(", ", " ").replace(",", ""))
    if key is None or page == REFERENCES:
        return match[0]
    return f"[{match[0]}]({relative(page, f'{REFERENCES}#ref-{key}')})"


def heading_id(words):
    "The id that pandoc gives a heading."
    found = re.search(r"\{[^}]*#([\w.:-]+)[^}]*\}\s*$", words)
    if found:
        return found[1]
    words = re.sub(r"\{[^}]*\}\s*$", "", words)
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words)
    words = re.sub(r"[^\w\s.-]", "", words).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", words)) or "section"


def set_apart(text, taken):
    "Give headings another id where theirs is that of an entry of the reference."

    def renamed(match):
        own = heading_id(match[2])
        is_plain = "{" not in match[2] and own in taken
        return f"{match[0]} {{#on-{own}}}" if is_plain else match[0]

    return re.sub(r"^(#+) +(.+)$", renamed, text, flags=re.M)
