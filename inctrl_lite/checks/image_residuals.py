"""Exercises of notebook 05: image residuals."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inctrl_lite.checks.engine import Exercise, difference, generator
from inctrl_lite.model import Adapter as LibraryAdapter

# --- the adapter -------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """Psi: two linear layers without bias, a ReLU after each; [..., width] in and out."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu()).relu()


def _wrong(forward: Callable, bias: bool = False, inner: Callable = lambda width, reduction: None) -> type:
    """An adapter with another forward, bias, or width in the middle."""

    class Wrong(nn.Module):
        def __init__(self, width: int, reduction: int = 4):
            super().__init__()
            middle = inner(width, reduction) or width // reduction
            self.down = nn.Linear(width, middle, bias=bias)
            self.up = nn.Linear(middle, width, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Wrong


def _right_forward(module, x: Tensor) -> Tensor:
    return Adapter.forward(module, x)


def _with_norm(width: int, reduction: int = 4) -> nn.Module:
    down, up = (
        nn.Linear(width, width // reduction, bias=False),
        nn.Linear(width // reduction, width, bias=False),
    )
    return nn.Sequential(down, nn.ReLU(), up, nn.ReLU(), nn.LayerNorm(width))


def _with_learned_weights(answer: Callable, width: int, reduction: int, x: Tensor):
    """Shapes of an adapter's parameters, and what it answers once each shape holds the same numbers.

    Parameters are found by their shapes, so that names and order are the student's.
    """
    module = answer(width, reduction)
    if not isinstance(module, nn.Module) or type(module).forward is nn.Module.forward:
        raise TypeError("an adapter is an nn.Module with a method `forward`")
    parameters = sorted(module.parameters(), key=lambda p: tuple(p.shape))
    if not parameters:
        raise TypeError("the adapter has no parameters")
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(i)))
        return [list(p.shape) for p in parameters], module.eval()(x)


class _Hidden(nn.Module):
    """An adapter whose layers are kept where nobody finds their parameters."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        middle = width // reduction
        self.layers = [nn.Linear(width, middle, bias=False), nn.Linear(middle, width, bias=False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).relu()).relu()


def _not_an_adapter(case: tuple, result, right) -> str | None:
    """Whether it is the matrices or the answer that differs."""
    width, reduction, x = case
    (shapes, answer), (right_shapes, right_answer) = result, right
    if shapes != right_shapes:
        return f"holds parameters of shapes {shapes}, expected {right_shapes}"
    return f"with the right parameters, forward {difference(answer, right_answer)}"


def _made_for(width: int, reduction: int, x: Tensor) -> str:
    return f"Adapter({width}, {reduction}), called with embeddings {list(x.shape)}"


def _embeddings(seed: int) -> tuple[int, int, Tensor]:
    width, reduction = ((12, 4), (20, 2), (24, 3), (16, 4))[seed]
    shape = ((5,), (3, 2), (6,), (2, 4))[seed]
    return width, reduction, torch.randn(*shape, width, generator=generator(seed))


check_Adapter = Exercise(
    solution=Adapter,
    library=LibraryAdapter,
    cases=_embeddings,
    run=_with_learned_weights,
    inputs=_made_for,
    explain=_not_an_adapter,
    mistakes={
        "the middle always has 160 numbers, which is the paper's size: it is width // reduction": _wrong(
            _right_forward, inner=lambda width, reduction: 160
        ),
        "nn.Module finds no parameters: layers in a plain list are hidden from it, and would never be "
        "trained. Keep them as self.down and self.up, or in an nn.ModuleList": _Hidden,
        "the linear layers have a bias: psi has none, so pass bias=False": _wrong(_right_forward, bias=True),
        "the last ReLU is missing: there is one after each of the two layers": _wrong(
            lambda m, x: m.up(m.down(x).relu())
        ),
        "the first ReLU is missing: without it, the two layers are together one linear layer": _wrong(
            lambda m, x: m.up(m.down(x)).relu()
        ),
        "both ReLUs are missing: this is one linear map": _wrong(lambda m, x: m.up(m.down(x))),
        "there is a skip connection: psi gives back what the layers say, without adding its input": _wrong(
            lambda m, x: x + _right_forward(m, x)
        ),
        "there is a skip connection inside the last ReLU: psi does not add its input": _wrong(
            lambda m, x: (x + m.up(m.down(x).relu())).relu()
        ),
        "the width in the middle is `reduction` itself: it is width // reduction": _wrong(
            _right_forward, inner=lambda width, reduction: reduction
        ),
        "the width in the middle is always a quarter: use the argument `reduction`": _wrong(
            _right_forward, inner=lambda width, reduction: width // 4
        ),
        "this widens: the middle has width // reduction numbers, not width * reduction": (
            _wrong(_right_forward, inner=lambda width, reduction: width * reduction)
        ),
        "the layers do not narrow: the middle has width // reduction numbers": _wrong(
            _right_forward, inner=lambda width, reduction: width
        ),
        "there is a norm: psi has none": _with_norm,
    },
)


# --- the residual ------------------------------------------------------------------------------------


def adapted_residual(adapter, query: Tensor, prompt: Tensor) -> Tensor:
    """Image residuals [B, D] of queries [B, D] against normal prompts [K, D] or [B, K, D]."""
    return adapter(prompt).mean(-2) - adapter(query)


def _psi(down: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: ((x @ down.T).relu() @ up.T).relu()


def _prompts(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator(seed)
    # as many prompts as queries in one case: a mean over the wrong axis then has the right shape
    images, shots, width = ((3, 2), (4, 4), (2, 5), (3, 3))[seed] + (6,)
    shape = (images, shots, width) if seed % 2 else (shots, width)
    down, up = torch.randn(4, width, generator=g), torch.randn(width, 4, generator=g)
    return down, up, torch.randn(images, width, generator=g), torch.randn(shape, generator=g)


check_adapted_residual = Exercise(
    solution=adapted_residual,
    cases=_prompts,
    run=lambda answer, down, up, query, prompt: answer(_psi(down, up), query, prompt),
    inputs=lambda down, up, query, prompt: (
        f"a small adapter, query [B, D] = {list(query.shape)}, prompts {list(prompt.shape)}, that is "
        + ("[K, D], shared by all" if prompt.ndim == 2 else "[B, K, D], K for each query")
    ),
    mistakes={
        "the mean runs over axis 1. That is the K prompts in [B, K, D], but in [K, D] it is the D numbers: "
        "count from the end, the prompts are axis -2 in both": lambda psi, q, p: psi(p).mean(1) - psi(q),
        "the mean is taken before the adapter: adapt every prompt first, then average": (
            lambda psi, q, p: psi(p.mean(-2)) - psi(q)
        ),
        "the sign is the paper's, query minus prototype. We follow the public code: prototype minus query": (
            lambda psi, q, p: psi(q) - psi(p).mean(-2)
        ),
        "the query is not adapted: it goes through the same adapter as the prompts": (
            lambda psi, q, p: psi(p).mean(-2) - q
        ),
        "the prompts are not adapted: they go through the same adapter as the query": (
            lambda psi, q, p: p.mean(-2) - psi(q)
        ),
        "nothing is adapted": lambda psi, q, p: p.mean(-2) - q,
        "you adapt the difference: adapt both sides, then subtract": lambda psi, q, p: psi(p.mean(-2) - q),
        "the mean runs over the first axis. With one prompt per query, [B, K, D], that is the batch: the K "
        "prompts are on the last axis but one, whichever form they come in": lambda psi, q, p: (
            psi(p).mean(0) - psi(q)
        ),
        "the mean runs over the D numbers of an embedding: the K prompts are the last axis but one": (
            lambda psi, q, p: psi(p).mean(-1).mean(-1, keepdim=True) - psi(q)
        ),
        "you add up the prompts: take their mean, or K prompts are K times as far away": lambda psi, q, p: (
            psi(p).sum(-2) - psi(q)
        ),
        "this is the difference to a single prompt: take the mean of all K": lambda psi, q, p: (
            psi(p)[..., 0, :] - psi(q)
        ),
        "you take the largest over the prompts, number by number: take their mean": lambda psi, q, p: (
            psi(p).amax(-2) - psi(q)
        ),
        "you take the absolute value: the sign says in which direction a query differs, so keep it": (
            lambda psi, q, p: adapted_residual(psi, q, p).abs()
        ),
        "the difference is adapted once more: it goes to the head as it is": lambda psi, q, p: psi(
            adapted_residual(psi, q, p)
        ),
    },
)


# --- what is trained ---------------------------------------------------------------------------------


def audit(module: nn.Module) -> dict[str, int]:
    """How many numbers of a module are trained, dead and frozen, after a backward pass."""
    counts = {"trained": 0, "dead": 0, "frozen": 0}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            kind = "frozen"
        elif parameter.grad is None:
            kind = "dead"
        else:
            kind = "trained"
        counts[kind] += parameter.numel()
    return counts


class _Audited(nn.Module):
    """Frozen, trained and unused layers, and one whose gradient happens to be zero."""

    def __init__(self, seed: int):
        super().__init__()
        width = 3 + seed
        self.backbone = nn.Sequential(nn.Linear(7, width), nn.BatchNorm1d(width)).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2 + seed))
        self.unused = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.ones(2 + seed))
        self.silent = nn.Parameter(torch.ones(4 + seed))

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.backbone(x)) * self.scale).sum() + (0 * self.silent).sum()


def _audited(answer: Callable, seed: int) -> dict[str, int]:
    module = _Audited(seed)
    module(torch.randn(6, 7, generator=generator(seed))).backward()
    return answer(module)


def _count(module: nn.Module, kind: Callable, size: Callable = Tensor.numel) -> dict[str, int]:
    counts = {"trained": 0, "dead": 0, "frozen": 0}
    for name, parameter in module.named_parameters():
        counts[kind(name, parameter)] += size(parameter)
    return counts


def _kind(name: str, p: Tensor) -> str:
    return "frozen" if not p.requires_grad else "dead" if p.grad is None else "trained"


def _with_buffers(module: nn.Module) -> dict[str, int]:
    counts = audit(module)
    return counts | {"frozen": counts["frozen"] + sum(b.numel() for b in module.buffers())}


def _only(counted: Callable[[str, Tensor], bool]) -> Callable[[nn.Module], dict[str, int]]:
    """An audit that overlooks some parameters."""

    def wrong(module: nn.Module) -> dict[str, int]:
        counts = {"trained": 0, "dead": 0, "frozen": 0}
        for name, parameter in module.named_parameters():
            counts[_kind(name, parameter)] += parameter.numel() if counted(name, parameter) else 0
        return counts

    return wrong


def _in_numbers(case: tuple, result, right: dict[str, int]) -> str | None:
    if not isinstance(result, dict):
        return f"returns a {type(result).__name__}: asked is a dictionary with {', '.join(right)}"
    if result.keys() != right.keys():
        return f"returns the keys {', '.join(map(str, result))}; asked are {', '.join(right)}"
    return "; ".join(
        f"counts {result[kind]} numbers as {kind}, expected {right[kind]}"
        for kind in right
        if result[kind] != right[kind]
    )


check_audit = Exercise(
    solution=audit,
    cases=lambda seed: (seed,),
    run=_audited,
    inputs=lambda seed: (
        "a module after a backward pass: a frozen linear layer and norm, a head of four layers, a norm that "
        "forward never uses, and two parameters of its own, one of which always gets a gradient of zero"
    ),
    explain=_in_numbers,
    mistakes={
        "only the parameters of its layers are counted: those that belong to the module itself are missing. "
        "module.parameters() yields all": _only(lambda name, p: "." in name),
        "only layers right below the module are counted, none of the layers inside of them: "
        "module.parameters() yields all": _only(lambda name, p: name.count(".") == 1),
        "dead parameters count as trained: requires_grad is only the wish; look whether a gradient arrived": (
            lambda m: _count(m, lambda name, p: "trained" if p.requires_grad else "frozen")
        ),
        "frozen parameters count as dead: they have no gradient either, so ask for requires_grad first": (
            lambda m: _count(m, lambda name, p: "dead" if p.grad is None else "trained")
        ),
        "frozen parameters count as trained": lambda m: _count(
            m, lambda name, p: "trained" if not p.requires_grad else _kind(name, p)
        ),
        "dead parameters count as frozen: nobody froze them, they are asked for a gradient and get none": (
            lambda m: _count(m, lambda name, p: "frozen" if p.grad is None else "trained")
        ),
        "a gradient of zero is a gradient: dead are those whose .grad is None": lambda m: _count(
            m,
            lambda name, p: (
                "frozen"
                if not p.requires_grad
                else "trained"
                if p.grad is not None and p.grad.any()
                else "dead"
            ),
        ),
        "buffers are counted, such as BatchNorm's running mean: they are no parameters, no gradient is ever "
        "meant for them": _with_buffers,
        "you count tensors: asked are the numbers in them, parameter.numel()": lambda m: _count(
            m, _kind, lambda p: 1
        ),
        "only matrices are counted: biases and the scales of norms are parameters, too": _only(
            lambda name, p: p.ndim > 1
        ),
        "only what is called weight is counted: biases and other parameters are missing": _only(
            lambda name, p: name.endswith("weight")
        ),
        "only the module's own parameters are counted, none of its layers': leave out recurse=False": (
            _only(lambda name, p: "." not in name)
        ),
        "you add up shapes: a matrix [a, b] holds a * b numbers": lambda m: _count(
            m, _kind, lambda p: sum(p.shape)
        ),
    },
)
