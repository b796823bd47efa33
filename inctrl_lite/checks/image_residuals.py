"""Exercises of notebook 05: image residuals."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inctrl_lite.checks.engine import Exercise, difference, generator, same
from inctrl_lite.heads import Adapter as LibraryAdapter

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


def _with_fixed_weights(answer: Callable, width: int, reduction: int, x: Tensor):
    """Sizes of an adapter's parameters, and its outputs in both modes when they hold fixed numbers.

    Parameters are found by their shapes, so that a student may use other names, another order, plain
    `nn.Parameter`s and transposed matrices.
    """
    module = answer(width, reduction)
    if not isinstance(module, nn.Module) or type(module).forward is nn.Module.forward:
        raise TypeError("an adapter is an nn.Module with a method `forward`")
    parameters = sorted(module.parameters(), key=lambda p: tuple(p.shape))
    if not parameters:
        raise TypeError("the adapter has no parameters")
    sizes = sorted(sorted(p.shape) for p in parameters)
    middle = width // reduction
    fills = [[torch.randn(p.shape, generator=generator(i)) for i, p in enumerate(parameters)]]
    g = generator(0)
    down, up = torch.randn(middle, width, generator=g), torch.randn(width, middle, generator=g)
    if sizes == [[middle, width]] * 2:  # which one is `down`? The output says it
        orders = ((down, up), (up, down))
        fills = [
            [w if w.shape == p.shape else w.T for w, p in zip(order, parameters, strict=True)]
            for order in orders
        ]
    wanted, outputs = ((x @ down.T).relu() @ up.T).relu(), []
    for fill in fills:
        with torch.no_grad():
            for parameter, values in zip(parameters, fill, strict=True):
                parameter.copy_(values)
            outputs.append((module.eval()(x), module.train()(x)))
    return sizes, *min(outputs, key=lambda pair: _distance(pair[0], wanted))


def _distance(output: Tensor, wanted: Tensor) -> float:
    return (output - wanted).abs().max().item() if output.shape == wanted.shape else float("inf")


class _Hidden(nn.Module):
    """An adapter whose layers are in a plain list, where nn.Module does not find their parameters."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        middle = width // reduction
        self.layers = [nn.Linear(width, middle, bias=False), nn.Linear(middle, width, bias=False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).relu()).relu()


def _not_an_adapter(case: tuple, result, right) -> str | None:
    """Whether the matrices or the output are wrong."""
    width, reduction, x = case
    (shapes, answer, in_training), (right_shapes, right_answer, _) = result, right
    if shapes != right_shapes:
        return f"has parameters of the sizes {shapes}, expected {right_shapes} (each sorted)"
    if same(answer, right_answer, 1e-5) and not same(in_training, right_answer, 1e-5):
        return "forward gives other numbers in training mode. Psi has no Dropout and no BatchNorm"
    return f"the parameters have the right sizes, but forward {difference(answer, right_answer)}"


def _made_for(width: int, reduction: int, x: Tensor) -> str:
    return f"Adapter({width}, {reduction}), called with embeddings of shape {list(x.shape)}"


def _embeddings(seed: int) -> tuple[int, int, Tensor]:
    width, reduction = ((12, 4), (20, 2), (24, 3), (16, 4))[seed]
    shape = ((5,), (3, 2), (6,), (2, 4))[seed]
    return width, reduction, torch.randn(*shape, width, generator=generator(seed))


check_Adapter = Exercise(
    solution=Adapter,
    library=LibraryAdapter,
    cases=_embeddings,
    run=_with_fixed_weights,
    inputs=_made_for,
    explain=_not_an_adapter,
    mistakes={
        "The middle always has 160 numbers, which is the paper's size. Its width is width // "
        "reduction.": _wrong(_right_forward, inner=lambda width, reduction: 160),
        "nn.Module finds no parameters, because layers in a plain list are hidden from it. "
        "They would never be trained. Keep them as self.down and self.up, or in an "
        "nn.ModuleList.": _Hidden,
        "The linear layers have a bias. Psi has none: pass bias=False.": _wrong(_right_forward, bias=True),
        "The last ReLU is missing: there is one after each of the two layers.": _wrong(
            lambda m, x: m.up(m.down(x).relu())
        ),
        "The first ReLU is missing. Without it, the two layers are together one linear layer.": _wrong(
            lambda m, x: m.up(m.down(x)).relu()
        ),
        "Both ReLUs are missing, so this is one linear map.": _wrong(lambda m, x: m.up(m.down(x))),
        "There is a skip connection. Psi does not add its input to its output.": _wrong(
            lambda m, x: x + _right_forward(m, x)
        ),
        "There is a skip connection inside the last ReLU. Psi does not add its input.": _wrong(
            lambda m, x: (x + m.up(m.down(x).relu())).relu()
        ),
        "The width of the middle is `reduction` itself. It is width // reduction.": _wrong(
            _right_forward, inner=lambda width, reduction: reduction
        ),
        "The width of the middle is always a quarter. Use the argument `reduction`.": _wrong(
            _right_forward, inner=lambda width, reduction: width // 4
        ),
        "The middle is wider than the input. It has width // reduction numbers, not width * reduction.": (
            _wrong(_right_forward, inner=lambda width, reduction: width * reduction)
        ),
        "The layers do not narrow. The middle has width // reduction numbers.": _wrong(
            _right_forward, inner=lambda width, reduction: width
        ),
        "There is a normalisation layer. Psi has none.": _with_norm,
    },
)


# --- the residual ------------------------------------------------------------------------------------


def adapted_residual(adapter, query: Tensor, support: Tensor) -> Tensor:
    """Image residuals [B, D] of queries [B, D] against normal images [K, D] or [B, K, D]."""
    return adapter(support).mean(-2) - adapter(query)


def _psi(down: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: ((x @ down.T).relu() @ up.T).relu()


def _embedded(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator(seed)
    # as many normal images as queries in one case: a mean over the wrong axis then has the right shape
    images, shots, width = ((3, 2), (4, 4), (2, 5), (3, 3))[seed] + (6,)
    shape = (images, shots, width) if seed % 2 else (shots, width)
    down, up = torch.randn(4, width, generator=g), torch.randn(width, 4, generator=g)
    return down, up, torch.randn(images, width, generator=g), torch.randn(shape, generator=g)


check_adapted_residual = Exercise(
    solution=adapted_residual,
    cases=_embedded,
    run=lambda answer, down, up, query, support: answer(_psi(down, up), query, support),
    inputs=lambda down, up, query, support: (
        f"a small adapter, query [B, D] = {list(query.shape)}, support {list(support.shape)}, which is "
        + ("[K, D], shared by all queries" if support.ndim == 2 else "[B, K, D], K for each query")
    ),
    mistakes={
        "You average over axis 1. In [B, K, D] these are the K normal images, but in [K, D] "
        "they are the D numbers. Count from the end: the normal images are axis -2 in both "
        "forms.": lambda psi, q, p: psi(p).mean(1) - psi(q),
        "You take the mean before the adapter. Adapt every normal image first, then average.": (
            lambda psi, q, p: psi(p.mean(-2)) - psi(q)
        ),
        "You use the paper's sign, query minus prototype. We follow the public code: prototype minus "
        "query.": (lambda psi, q, p: psi(q) - psi(p).mean(-2)),
        "The query is not adapted. It passes through the same adapter as the normal images.": (
            lambda psi, q, p: psi(p).mean(-2) - q
        ),
        "The normal images are not adapted. They pass through the same adapter as the query.": (
            lambda psi, q, p: p.mean(-2) - psi(q)
        ),
        "Nothing is adapted.": lambda psi, q, p: p.mean(-2) - q,
        "You adapt the difference. Adapt both sides, then subtract.": lambda psi, q, p: psi(p.mean(-2) - q),
        "You average over the first axis. With one support set for each query, [B, K, "
        "D], that is the batch. The K normal images are the last axis but one in both "
        "forms.": lambda psi, q, p: psi(p).mean(0) - psi(q),
        "You average over the D numbers of an embedding. The K normal images are the last axis but one.": (
            lambda psi, q, p: psi(p).mean(-1).mean(-1, keepdim=True) - psi(q)
        ),
        "You add the normal images. Take their mean; otherwise the residual grows with "
        "K.": lambda psi, q, p: psi(p).sum(-2) - psi(q),
        "This is the difference to a single normal image. Take the mean of all K.": lambda psi, q, p: (
            psi(p)[..., 0, :] - psi(q)
        ),
        "You take the maximum over the normal images, number by number. Take their mean.": lambda psi, q, p: (
            psi(p).amax(-2) - psi(q)
        ),
        "You take the absolute value. The sign says in which direction a query differs, so keep it.": (
            lambda psi, q, p: adapted_residual(psi, q, p).abs()
        ),
        "You adapt the difference once more. The head takes it as it is.": lambda psi, q, p: psi(
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
    """Frozen, trained and unused layers, and one whose gradient happens to be zero.

    In two cases, one of the three kinds does not occur.
    """

    def __init__(self, seed: int):
        super().__init__()
        width = 3 + seed
        self.backbone = nn.Sequential(nn.Linear(7, width), nn.BatchNorm1d(width))
        self.backbone.requires_grad_(seed == 3)
        self.head = nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2 + seed))
        self.unused = nn.BatchNorm1d(width) if seed != 2 else nn.Identity()
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
        return f"returns a {type(result).__name__}: a dictionary with {', '.join(right)} is expected"
    if result.keys() != right.keys():
        return (
            f"returns the keys {', '.join(map(str, result))}; expected {', '.join(right)}, with 0 where "
            "there are none"
        )
    return "; ".join(
        f"counts {result[kind]} numbers as {kind}, expected {right[kind]}"
        for kind in right
        if result[kind] != right[kind]
    )


def _parts_of_the_module(seed: int) -> str:
    kind, unused = "trained" if seed == 3 else "frozen", "a BatchNorm that forward never uses, "
    return (
        f"a module after a backward pass: a {kind} linear layer and BatchNorm, a head of four layers, "
        f"{'' if seed == 2 else unused}and two parameters of the module itself, one of which always gets a "
        "gradient of zero"
    )


check_audit = Exercise(
    solution=audit,
    cases=lambda seed: (seed,),
    run=_audited,
    inputs=_parts_of_the_module,
    explain=_in_numbers,
    mistakes={
        "You count only the parameters of the layers. Those that belong to the module itself are missing: "
        "module.parameters() yields all.": _only(lambda name, p: "." in name),
        "You count only the layers directly below the module, and none of the layers inside them: "
        "module.parameters() yields all.": _only(lambda name, p: name.count(".") == 1),
        "Dead parameters count as trained. requires_grad only asks for a gradient: look whether one "
        "arrived.": (lambda m: _count(m, lambda name, p: "trained" if p.requires_grad else "frozen")),
        "Frozen parameters count as dead. They have no gradient either, so test requires_grad first.": (
            lambda m: _count(m, lambda name, p: "dead" if p.grad is None else "trained")
        ),
        "Frozen parameters count as trained.": lambda m: _count(
            m, lambda name, p: "trained" if not p.requires_grad else _kind(name, p)
        ),
        "Dead parameters count as frozen. They are not frozen: a gradient is asked for, and none arrives.": (
            lambda m: _count(m, lambda name, p: "frozen" if p.grad is None else "trained")
        ),
        "A gradient of zero is a gradient. Parameters are dead if .grad is None.": lambda m: _count(
            m,
            lambda name, p: (
                "frozen"
                if not p.requires_grad
                else "trained"
                if p.grad is not None and p.grad.any()
                else "dead"
            ),
        ),
        "You count buffers, such as the running mean of BatchNorm. They are not parameters and never get "
        "a gradient.": _with_buffers,
        "You count tensors. The numbers in them are expected: parameter.numel().": lambda m: _count(
            m, _kind, lambda p: 1
        ),
        "You count only matrices. Biases and the scales of normalisation layers are parameters, too.": _only(
            lambda name, p: p.ndim > 1
        ),
        "You count only parameters that are called weight. Biases and other parameters are missing.": _only(
            lambda name, p: name.endswith("weight")
        ),
        "You count only the parameters of the module itself, none of its layers: leave out recurse=False.": (
            _only(lambda name, p: "." not in name)
        ),
        "You add the sides of a shape. A matrix [a, b] holds a * b numbers.": lambda m: _count(
            m, _kind, lambda p: sum(p.shape)
        ),
    },
)


# --- the head ----------------------------------------------------------------------------------------


def score_of(x: Tensor, linears: list, norms: list) -> Tensor:
    """Scores [B] of vectors [B, W]: three linear layers, a ReLU and then a BatchNorm after the first two."""
    x = norms[0](linears[0](x).relu())
    x = norms[1](linears[1](x).relu())
    return linears[2](x).sigmoid().squeeze(-1)


def _layers(seed: int) -> tuple[Tensor, list[Callable], list[Callable]]:
    """Random layers as plain functions."""
    g, widths = generator(seed), (6 + seed, 5, 4, 1)

    def linear(i: int) -> Callable[[Tensor], Tensor]:
        weight, bias = torch.randn(widths[i + 1], widths[i], generator=g), torch.randn(1, generator=g)
        return lambda x: x @ weight.T + bias

    def norm(i: int) -> Callable[[Tensor], Tensor]:
        mean, factor = torch.randn(widths[i + 1], generator=g), 0.5 + torch.rand(widths[i + 1], generator=g)
        return lambda x: (x - mean) * factor

    linears, norms = [linear(i) for i in range(3)], [norm(i) for i in range(2)]
    return torch.randn((3, 1, 5, 6)[seed], widths[0], generator=g), linears, norms


def _chain(hidden: Callable[[Tensor, Callable], Tensor], end: Callable[[Tensor], Tensor]) -> Callable:
    """A wrong answer with another order in the hidden layers, or another end."""

    def wrong(x: Tensor, linears: list[Callable], norms: list[Callable]) -> Tensor:
        for linear, norm in zip(linears, norms, strict=False):
            x = hidden(linear(x), norm)
        return end(linears[2](x))

    return wrong


def _relu_then_norm(x: Tensor, norm: Callable) -> Tensor:
    return norm(x.relu())


def _flat_sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid().squeeze(-1)


check_score_of = Exercise(
    solution=score_of,
    cases=_layers,
    inputs=lambda x, linears, norms: f"x = Tensor {list(x.shape)}; three linear layers; two BatchNorms",
    mistakes={
        "The BatchNorm comes before the ReLU. Here it comes after it.": _chain(
            lambda x, norm: norm(x).relu(), _flat_sigmoid
        ),
        "The BatchNorms are missing.": _chain(lambda x, norm: x.relu(), _flat_sigmoid),
        "The ReLUs are missing.": _chain(lambda x, norm: norm(x), _flat_sigmoid),
        "There is one ReLU too many, after the BatchNorm.": _chain(
            lambda x, norm: norm(x.relu()).relu(), _flat_sigmoid
        ),
        "The sigmoid at the end is missing.": _chain(_relu_then_norm, lambda x: x.squeeze(-1)),
        "There is a ReLU before the sigmoid: then no score is below 0.5.": _chain(
            _relu_then_norm, lambda x: x.relu().sigmoid().squeeze(-1)
        ),
        "Return scores [B]: the last axis, which has one number, is still there.": _chain(
            _relu_then_norm, Tensor.sigmoid
        ),
        "You remove all axes of length 1. With one image the batch axis is then lost, too: squeeze(-1) or "
        "[:, 0].": _chain(_relu_then_norm, lambda x: x.sigmoid().squeeze()),
        "There is a second sigmoid at the end.": _chain(
            _relu_then_norm, lambda x: x.sigmoid().sigmoid().squeeze(-1)
        ),
        "The ReLU of the second layer is missing.": lambda x, linears, norms: _flat_sigmoid(
            linears[2](norms[1](linears[1](norms[0](linears[0](x).relu()))))
        ),
        "The second BatchNorm is missing.": lambda x, linears, norms: _flat_sigmoid(
            linears[2](linears[1](norms[0](linears[0](x).relu())).relu())
        ),
    },
)


# --- harder: the rank of a query among the normal images ---------------------------------------------


def rank_among_normals(adapter, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, D] and normal images [K, D] -> lengths [B, K + 1], the query last, and shares [B]."""
    own = adapter(query)[:, None]  # [B, 1, D]
    members = torch.cat([adapter(support).expand(len(query), -1, -1), own], dim=1)  # [B, K + 1, D]
    others = (members.sum(1, keepdim=True) - members) / len(support)  # mean of the K other members
    lengths = (others - members).norm(dim=-1)
    return lengths, (lengths >= lengths[:, -1:] - 1e-4).float().mean(1)


def _ranked(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if seed == 4:
        return _nearly_equal()
    g = generator(30 + seed)
    images, shots, width = ((5, 4), (4, 7), (3, 1), (6, 6))[seed] + (7,)
    support = torch.randn(shots, width, generator=g)
    query = torch.randn(images, width, generator=g) * torch.linspace(0.5, 2, images)[:, None]
    query[0] = support[0]  # a copy: two members with the same length
    down, up = torch.randn(5, width, generator=g), torch.randn(width, 5, generator=g)
    return down / 2, up / 2, query, support


def _nearly_equal() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Members around a centre, as an adapter that changes nothing gives them: the query's length is 10.

    A normal image is 0.00005 shorter, which counts; two are 0.0005 shorter, which does not.
    """
    centre, axes, shots = torch.full((3,), 26.0), torch.eye(3), 6
    unit = 10 * shots / (shots + 1)  # the length is (K + 1) / K times the distance from the mean of all
    nearly, shorter = (unit * (1 - share) for share in (5e-6, 5e-5))
    offsets = [-nearly * axes[0], shorter * axes[1], -shorter * axes[1], 3 * unit * axes[2]]
    offsets += [-3 * unit * axes[2], (nearly - unit) * axes[0]]
    return axes, axes, (centre + unit * axes[0])[None], torch.stack([centre + one for one in offsets])


def _more_queries_and_members(down, up, query, support) -> dict[str, tuple]:
    """The same case with twice as many queries, and with twice as many normal images."""
    more = {"queries": (down, up, torch.cat([query] * 2), support)}
    if len(support) > 1:  # an answer may treat K = 1 by itself
        more["members"] = down, up, query, torch.cat([support] * 2)
    return more


def _joined(own: Tensor, normal: Tensor) -> Tensor:
    return torch.cat([normal.expand(len(own), -1, -1), own[:, None]], dim=1)


def _of_others(members: Tensor) -> Tensor:
    """Lengths [B, K + 1] of members [B, K + 1, D], each against the mean of the others."""
    others = (members.sum(1, keepdim=True) - members) / (members.shape[1] - 1)
    return (others - members).norm(dim=-1)


def _not_below(lengths: Tensor) -> Tensor:
    return (lengths >= lengths[:, -1:] - 1e-4).float().mean(1)


def _ranking(
    members: Callable = lambda psi, q, p: _joined(psi(q), psi(p)),
    lengths: Callable = _of_others,
    share: Callable = _not_below,
) -> Callable:
    def wrong(psi, q, p):
        found = lengths(members(psi, q, p))
        return found, share(found)

    return wrong


def _without_the_query(members: Tensor) -> Tensor:
    """Normal images against each other, the query against all of them."""
    normal, own = members[:, :-1], members[:, -1]
    return torch.cat([_of_others(normal), (normal.mean(1) - own).norm(dim=-1)[:, None]], dim=1)


def _all_in_one_set(psi, q, p):
    everything = torch.cat([psi(p), psi(q)])
    lengths = _of_others(everything[None])[0]
    lengths = torch.cat([lengths[: len(p)].expand(len(q), -1), lengths[len(p) :, None]], dim=1)
    return lengths, _not_below(lengths)


check_rank_among_normals = Exercise(
    solution=rank_among_normals,
    cases=_ranked,
    larger=_more_queries_and_members,
    number=5,
    run=lambda answer, down, up, query, support: answer(_psi(down, up), query, support),
    inputs=lambda down, up, query, support: (
        f"a small adapter, query [B, D] = {list(query.shape)}, support [K, D] = {list(support.shape)}"
    ),
    parts=("lengths", "shares"),
    mistakes={
        "The normal images are compared with each other, without the query. Then a query has K others and a "
        "normal image K - 1, and the ranks are not fair: the query joins the set.": _ranking(
            lengths=_without_the_query
        ),
        "Every member is compared with a mean that contains it. Leave it out.": _ranking(
            lengths=lambda m: (m.mean(1, keepdim=True) - m).norm(dim=-1)
        ),
        "Every member is compared with the prototype of the K normal images. It contains the normal images, "
        "but not the query.": _ranking(lengths=lambda m: (m[:, :-1].mean(1, keepdim=True) - m).norm(dim=-1)),
        "The sum of the others is divided by K + 1. There are K others.": _ranking(
            lengths=lambda m: ((m.sum(1, keepdim=True) - m) / m.shape[1] - m).norm(dim=-1)
        ),
        "The sum of the others is not divided. Take their mean.": _ranking(
            lengths=lambda m: (m.sum(1, keepdim=True) - 2 * m).norm(dim=-1)
        ),
        "Nothing is adapted. All members pass through the adapter.": _ranking(
            lambda psi, q, p: _joined(q, p)
        ),
        "The query is not adapted.": _ranking(lambda psi, q, p: _joined(q, psi(p))),
        "The mean of the others is taken before the adapter. Adapt first.": lambda psi, q, p: (
            (
                lengths := (
                    psi((_joined(q, p).sum(1, keepdim=True) - _joined(q, p)) / len(p)) - psi(_joined(q, p))
                ).norm(dim=-1)
            ),
            _not_below(lengths),
        ),
        "All queries are in one set. Each query joins the normal images alone, or its share depends on the "
        "batch.": _all_in_one_set,
        "The query is the first member. Put it last.": _ranking(
            lengths=lambda m: _of_others(m).roll(1, 1),
            share=lambda found: _not_below(found.roll(-1, 1)),
        ),
        "These are squared lengths.": _ranking(lengths=lambda m: _of_others(m) ** 2),
        "You add absolute values. The length is the root of the sum of squares.": _ranking(
            lengths=lambda m: ((m.sum(1, keepdim=True) - m) / (m.shape[1] - 1) - m).abs().sum(-1)
        ),
        "Equal lengths count as well, and so does the query itself: at least as long, not longer.": _ranking(
            share=lambda found: (found > found[:, -1:] + 1e-4).float().mean(1)
        ),
        "A length that is smaller than the query's by at most 0.0001 counts as well: lengths are rounded.": (
            _ranking(share=lambda found: (found >= found[:, -1:]).float().mean(1))
        ),
        "You count the members that are at most as long. An unusual query must get a small share.": _ranking(
            share=lambda found: (found <= found[:, -1:] + 1e-4).float().mean(1)
        ),
        "The query itself does not count in your share. It is one of the K + 1 members.": _ranking(
            share=lambda found: (found[:, :-1] >= found[:, -1:] - 1e-4).float().mean(1)
        ),
        "You divide by K. There are K + 1 members.": _ranking(
            share=lambda found: (found >= found[:, -1:] - 1e-4).float().sum(1) / (found.shape[1] - 1)
        ),
        "You return numbers of members. The share of all K + 1 is expected.": _ranking(
            share=lambda found: (found >= found[:, -1:] - 1e-4).float().sum(1)
        ),
        "Two equal lengths can differ by rounding: allow the 1e-4 of the task.": _ranking(
            share=lambda found: (found > found[:, -1:] + 1e-4).float().mean(1) + 1 / found.shape[1]
        ),
    },
)
