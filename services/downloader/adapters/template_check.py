"""Whether a chat template can be used: it is parsed, not run. Inference renders it, in a sandbox of its own."""

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant said: transformers takes it, and so does Inference."""

    tags: set[str] = {"generation"}  # noqa: RUF012, the library's class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_fault(template: str) -> str:
    """What is wrong with it; empty if nothing is."""
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols]).parse(template)
        names = [_name(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem))]
    except TemplateError as error:
        return str(error.message)
    except (RecursionError, MemoryError):
        return "it is nested too deeply, or takes too much memory"
    hidden = next((name for name in names if name.startswith("__")), "")
    return f"it reaches for {hidden}, which its sandbox forbids" if hidden else ""


def _name(node: nodes.Expr) -> str:
    match node:
        case nodes.Getattr(attr=name):
            return str(name)
        case nodes.Getitem(arg=nodes.Const(value=name)):
            return str(name)
        case _:
            return ""
