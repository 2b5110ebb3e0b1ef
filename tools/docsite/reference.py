"""What the exported cells of the pages define, read from their code, as entries of a reference.

Nothing is imported or run: names, parameters, defaults, and the comments that say what each is.
"""
import ast
import io
import textwrap
import tokenize
from dataclasses import dataclass, field

SPECIAL = ("__call__", "__getitem__", "__len__", "__iter__")  # methods that are called by syntax
SETTINGS = ("setting", "method_setting")  # what declares the settings of a command
WIDTH = 88  # of a signature


@dataclass
class Parameter:
    "A parameter of a function, or a field of a class."
    name: str
    type: str  # "" if it has none
    default: str  # as code, "" if it must be given
    meaning: str  # its comment, "" if it has none
    stars: str = ""  # "*" or "**"
    only_by_name: bool = False


@dataclass
class Entry:
    "What the reference says about one name."
    name: str  # with its class: `ClusterTree.find`
    kind: str  # "function", "class", "method", "property" or "settings"
    summary: str  # the docstring
    parameters: list = field(default_factory=list)
    returns: str = ""  # the type of what comes back
    returned: str = ""  # its comment
    shapes: str = ""  # "(B, D), Step -> (B, D)", for a signature of one line
    bases: tuple = ()  # of a class

    @property
    def anchor(self):
        "The id of its heading."
        return self.name


# Reading code


def comments_of(code):
    "The comment of each line: line number -> text."
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in comments}


def one_of(words):
    "Alternatives, the last after `or`."
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def parts_of(node):
    "What stands in the brackets of a type."
    inside = node.slice
    return inside.elts if isinstance(inside, ast.Tuple) else [inside]


def type_text(node):
    "A type as words: `Optional[torch.Tensor]` is `Tensor or None`."
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if not isinstance(node, ast.Subscript):
        return ast.unparse(node)
    outer = type_text(node.value)
    if outer == "Literal":
        return one_of([ast.unparse(part).replace("'", '"') for part in parts_of(node)])
    inner = [type_text(part) for part in parts_of(node)]
    if outer == "Optional":
        return one_of([*inner, "None"])
    return one_of(inner) if outer == "Union" else f"{outer}[{', '.join(inner)}]"


def default_text(node):
    "A default as code; what a factory makes is written as a call of it."
    if node is None:
        return ""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "field":
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        factory = given.get("default_factory")
        return f"{ast.unparse(factory)}()" if factory else default_text(given.get("default"))
    return ast.unparse(node).replace("'", '"')


def parameter(arg, default, comments, taken, **rest):
    "A parameter with the comment at the end of its line, unless another took it before."
    line = (default or arg).end_lineno
    meaning = "" if line in taken else comments.get(line, "")
    taken.add(line)
    return Parameter(arg.arg, type_text(arg.annotation), default_text(default), meaning, **rest)


def parameters_of(node, comments):
    "The parameters of a function, without `self` and `cls`."
    args, taken = node.args, {node.lineno}  # what follows `def f(x):` tells of the whole
    plain = args.posonlyargs + args.args
    missing = [None] * (len(plain) - len(args.defaults))
    read = [parameter(a, d, comments, taken) for a, d in zip(plain, missing + args.defaults)]
    if args.vararg:
        read.append(parameter(args.vararg, None, comments, taken, stars="*"))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults):
        read.append(parameter(arg, default, comments, taken, only_by_name=True))
    if args.kwarg:
        read.append(parameter(args.kwarg, None, comments, taken, stars="**"))
    return [p for p in read if p.name not in ("self", "cls")]


def is_one_line(node):
    "Whether the parameters of a function stand on the line of its name."
    args = [arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
    return all(arg.lineno == node.lineno for arg in args)


def signature_comment(node, comments):
    "The comment on the line that closes a signature, unless it is that of a parameter."
    args = [arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
    last = max([arg.lineno for arg in args], default=0)
    closing = node.returns.end_lineno if node.returns else node.body[0].lineno - 1
    if is_one_line(node):
        return comments.get(node.lineno, "")
    return comments.get(closing, "") if closing > last else ""


def decorators_of(node):
    "The names of the decorators, without their modules and arguments."
    called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return [getattr(d, "attr", getattr(d, "id", "")) for d in called]


def function_entry(node, comments, owner=""):
    "The entry of a function, a method or a property."
    is_property = {"property", "cached_property"} & set(decorators_of(node))
    kind = "property" if is_property else "method" if owner else "function"
    comment = signature_comment(node, comments)
    is_shapes = "->" in comment and is_one_line(node)
    return Entry(
        name=f"{owner}.{node.name}" if owner else node.name,
        kind=kind,
        summary=ast.get_docstring(node) or "",
        parameters=parameters_of(node, comments),
        returns=type_text(node.returns),
        returned="" if is_shapes else comment,
        shapes=comment if is_shapes else "",
    )


def fields_of(node, comments):
    "The fields of a dataclass."
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    return [
        Parameter(
            name=item.target.id,
            type=type_text(item.annotation),
            default=default_text(item.value),
            meaning=comments.get(item.end_lineno, ""),
        )
        for item in fields
        if not item.target.id.startswith("_")
    ]


def declares_settings(node):
    "Whether the fields of a class are declared by `setting`."
    calls = [item.value for item in node.body if isinstance(item, ast.AnnAssign)]
    return any(isinstance(c, ast.Call) and getattr(c.func, "id", "") in SETTINGS for c in calls)


def is_public(name):
    "Whether users call a method of this name."
    return name in SPECIAL or not name.startswith("_")


def class_entries(node, comments):
    "The entry of a class, then those of its public methods."
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    bases = tuple(type_text(base) for base in node.bases)
    entry = Entry(node.name, "class", ast.get_docstring(node) or "", bases=bases)
    if declares_settings(node):
        entry.kind = "settings"
    elif "dataclass" in decorators_of(node):
        entry.parameters = fields_of(node, comments)
    elif "__init__" in methods:
        entry.parameters = parameters_of(methods["__init__"], comments)
    public = [method for name, method in methods.items() if is_public(name)]
    return [entry, *(function_entry(method, comments, node.name) for method in public)]


def entries_of(code):
    "The entries of the public functions and classes that a cell defines."
    comments = comments_of(code)
    entries = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            entries.append(function_entry(node, comments))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            entries.extend(class_entries(node, comments))
    return entries


# Writing entries


def written(p):
    "A parameter as a signature has it."
    return f"{p.stars}{p.name}={p.default}" if p.default else f"{p.stars}{p.name}"


def words_of_signature(entry):
    "The parameters of an entry, with a `*` before those that go by name only."
    words, marked = [], False
    for p in entry.parameters:
        if p.only_by_name and not marked:
            words.append("*")
        marked = marked or p.only_by_name or p.stars == "*"
        words.append(written(p))
    return words


def signature(entry):
    "The line, or lines, of code that call or make what an entry describes."
    before = "class " if entry.kind in ("class", "settings") else ""
    after = f" -> {entry.returns}" if entry.returns and entry.returns != "None" else ""
    if entry.kind == "property":
        return f"{entry.name}{after}"
    if entry.kind == "settings":
        return f"{before}{entry.name}(...)"
    name = entry.name.removesuffix(".__call__")
    words = words_of_signature(entry)
    line = f"{before}{name}({', '.join(words)}){after}"
    if len(line) <= WIDTH:
        return line
    inner = textwrap.fill(", ".join(words), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{before}{name}(\n{inner},\n){after}"


def code_span(text):
    "Text as inline code, whatever backticks it holds."
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def definition(p, meaning):
    "A parameter and what it means, as an item of a definition list."
    kind = f" {code_span(p.type)}" if p.type else ""
    default = f", default {code_span(p.default)}" if p.default else ""
    return f"[{p.stars}{p.name}]{{.parameter}}{kind}{default}\n:   {meaning or '&nbsp;'}\n"


def returns_of(entry):
    "What comes back, as an item of a definition list, or nothing."
    kind = "" if entry.returns == "None" else entry.returns
    if not (kind or entry.returned):
        return ""
    shown = f" {code_span(kind)}" if kind else ""
    return f"[Returns]{{.returns}}{shown}\n:   {entry.returned or 'as above'}\n"


def entry_text(entry, level, meaning_of):
    "An entry as markdown; `meaning_of(entry, parameter)` says what a parameter is."
    heading = f"{'#' * level} `{entry.name}` {{#{entry.anchor}}}"
    lines = [heading, f"```python\n{signature(entry)}\n```"]
    if entry.summary:
        lines.append(entry.summary)
    if entry.kind == "settings":
        lines.append(f"Its fields are [settings](/reference/settings.qmd#{entry.anchor}).")
    if entry.shapes:
        lines.append(f"[Shapes]{{.returns}} {code_span(entry.shapes)}")
    named = [(p, meaning_of(entry, p)) for p in entry.parameters]
    lines.extend(definition(p, meaning) for p, meaning in named if meaning or not entry.shapes)
    if entry.returned:
        lines.append(returns_of(entry))
    return "\n\n".join(lines)
