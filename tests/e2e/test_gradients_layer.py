"""The backward operators of msa/gradient.h against PyTorch's autograd, through the C interface.

Arguments are laid out by the table of offsets that tests/api/abi_sizes.c fixes.
"""

import ctypes
import os
import pathlib
import re
import struct

import pytest

torch = pytest.importorskip("torch")
if os.environ.get("MSA_SANITIZE"):
    pytest.skip("a sanitizer cannot be loaded into an interpreter", allow_module_level=True)

BUILD = pathlib.Path(os.environ["MSA_BUILD_DIR"])
LAYOUTS = (pathlib.Path(os.environ["MSA_SOURCE_DIR"]) / "tests/api/abi_sizes.c").read_text()
OFFSETS = {}
for of, field, offset in re.findall(r"AT\((\w+), (\w+), (\d+)\)", LAYOUTS):
    OFFSETS.setdefault(of, {})[field] = int(offset)
SIZES = {name: int(size) for name, size in re.findall(r"SIZE\((\w+), (\d+)\)", LAYOUTS)}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int32: 5}

T, H, I, E, TOPK, VOCAB = 37, 48, 40, 6, 2, 61


@pytest.fixture(scope="module")
def library():
    opened = ctypes.CDLL(str(BUILD / "src/libmsa.so"))
    opened.msa_last_error.restype = ctypes.c_char_p
    return opened


@pytest.fixture(params=["ref", "cpu"])
def run(request, library):
    """run(op, **arguments): the operator, with plan and workspace where it has them."""
    context = ctypes.c_void_p()
    name = ctypes.create_string_buffer(request.param.encode())
    args = arguments("msa_context_args", backend=ctypes.addressof(name))
    assert library.msa_context_create(ctypes.byref(context), args) == 0

    def check(status):
        assert status == 0, library.msa_last_error().decode()

    def call(op, **values):
        args = arguments(f"msa_{op}_args", **values)
        if not hasattr(library, f"msa_{op}_plan"):
            check(getattr(library, f"msa_{op}")(context, args))
            return
        plan = arguments("msa_plan")
        check(getattr(library, f"msa_{op}_plan")(context, args, plan))
        n = struct.unpack_from("Q", plan, OFFSETS["msa_plan"]["workspace_bytes"])[0]
        memory = ctypes.create_string_buffer(n + 64)
        aligned = ctypes.c_void_p((ctypes.addressof(memory) + 63) // 64 * 64)
        check(getattr(library, f"msa_{op}")(context, plan, args, aligned, ctypes.c_size_t(n)))

    yield call
    library.msa_context_destroy(context)


def tensor_bytes(t):
    """msa_tensor: pointer, dtype, extents and strides in elements."""
    shape, stride = list(t.shape), list(t.stride())
    n = len(shape)
    return struct.pack("Qii4q4q", t.data_ptr(), DTYPES[t.dtype], n, *shape, *[0] * (4 - n), *stride, *[0] * (4 - n))


def arguments(name, **values):
    """A zeroed struct with its size and these fields: tensors, packed structs, pointers, numbers."""
    buffer = ctypes.create_string_buffer(SIZES[name])
    struct.pack_into("I", buffer, 0, SIZES[name])
    ends = sorted([*OFFSETS[name].values(), SIZES[name]])
    for field, value in values.items():
        at = OFFSETS[name][field]
        room = ends[ends.index(at) + 1] - at
        if isinstance(value, torch.Tensor):
            value = tensor_bytes(value) if room >= 80 else value.data_ptr()
        if isinstance(value, bytes):
            buffer[at : at + len(value)] = value
        elif isinstance(value, float):
            struct.pack_into("f", buffer, at, value)
        else:
            struct.pack_into("q" if room == 8 else "i", buffer, at, value)
    return buffer


def new(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape) * scale).to(dtype)


def leaf(t):
    return t.double().requires_grad_()


def close(actual, expected, relative=1e-5):
    error = (actual.double() - expected).abs().max().item()
    assert error <= relative * expected.abs().max().item() + 1e-7, error


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(4)


@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_linear(run, dtype, relative):
    x, w, d = new(T, H, dtype=dtype), new(I, H, dtype=dtype), new(T, I)
    dx, d_weight = torch.empty(T, H), torch.ones(I, H)
    run("linear_backward", x=x, weight=tensor_bytes(w), d_out=d, dx=dx, d_weight=d_weight)
    a, b = leaf(x), leaf(w)
    (a @ b.T).backward(d.double())
    close(dx, a.grad, relative)
    close(d_weight, b.grad + 1, relative)


@pytest.mark.parametrize("one_plus", [0, 1])
def test_rmsnorm_of_heads(run, one_plus):
    x, w, d = new(T, 3, H), new(H), new(T, 3, H)
    dx, d_weight = torch.ones(T, 3, H), torch.zeros(H)
    run("rmsnorm_backward", x=x, weight=w, eps=1e-5, one_plus=one_plus, d_out=d, dx=dx, d_weight=d_weight, accumulate=1)
    a, b = leaf(x), leaf(w)
    y = a * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-5) * (b + one_plus)
    y.backward(d.double())
    close(dx, a.grad + 1)
    close(d_weight, b.grad)


def activate(gate, up, oai):
    if not oai:
        return up * torch.nn.functional.silu(gate)
    gate, up = gate.clamp(max=2.0), up.clamp(-2.0, 2.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def activation(oai):
    return struct.pack("ifff", 0, 1.702, 1, 2) if oai else struct.pack("ifff", 1, 0, 0, 0)


@pytest.mark.parametrize("oai", [False, True])
def test_swiglu(run, oai):
    gate, up, d = new(T, I, scale=2), new(T, I, scale=2), new(T, I)
    d_gate, d_up = torch.empty(T, I), torch.empty(T, I)
    run("swiglu_backward", gate=gate, up=up, activation=activation(oai), d_out=d, d_gate=d_gate, d_up=d_up)
    a, b = leaf(gate), leaf(up)
    activate(a, b, oai).backward(d.double())
    close(d_gate, a.grad)
    close(d_up, b.grad)


def mlps(n, width):
    return [(new(width, H, scale=0.3), new(width, H, scale=0.3), new(H, width, scale=0.3)) for _ in range(n)]


def weights_bytes(mlp):
    return b"".join(tensor_bytes(w) + bytes(80) for w in mlp)


@pytest.mark.parametrize("oai", [False, True])
def test_router_and_experts(run, oai):
    """The whole of a sparse MLP: routing weights carry gradient into the router."""
    x, d, router, bias = new(T, H), new(T, H), new(E, H, scale=0.3), new(E)
    experts, shared = mlps(E, I), mlps(1, 2 * I)
    a, r = leaf(x), leaf(router)
    leaves = [tuple(leaf(w) for w in mlp) for mlp in experts + shared]
    scores = torch.sigmoid(a @ r.T)
    ids = (scores + bias).topk(TOPK).indices
    chosen = scores.gather(1, ids)
    routing = 1.5 * chosen / chosen.sum(-1, keepdim=True)

    def mlp(x, gate, up, down):
        return activate(x @ gate.T, x @ up.T, oai) @ down.T

    y = mlp(a, *leaves[E])
    for e in range(E):
        share = (routing * (ids == e)).sum(-1, keepdim=True)
        y = y + share * mlp(a, *leaves[e])
    y.backward(d.double())

    gradients = [[torch.zeros_like(w) for w in mlp] for mlp in experts + shared]
    packed = [b"".join(weights_bytes(m) for m in part) for part in (experts, shared)]
    packed += [b"".join(tensor_bytes(w) for mlp in part for w in mlp) for part in (gradients[:E], gradients[E:])]
    held = [ctypes.create_string_buffer(part, len(part)) for part in packed]
    experts_at, shared_at, d_experts_at, d_shared_at = map(ctypes.addressof, held)
    ids, weights = ids.to(torch.int32).contiguous(), routing.detach().float().contiguous()
    dx, d_weights, d_router = torch.empty(T, H), torch.empty(T, TOPK), torch.zeros(E, H)
    run("moe_backward", x=x, ids=ids, weights=weights, experts=experts_at, shared=shared_at, n_experts=E, topk=TOPK,
        activation=activation(oai), d_out=d, dx=dx, d_weights=d_weights, d_experts=d_experts_at, d_shared=d_shared_at)
    run("router_backward", x=x, weight=router, ids=ids, scaling=1.5, topk=TOPK, d_weights=d_weights, dx=dx,
        d_weight=d_router, accumulate=1)
    close(dx, a.grad)
    close(d_router, r.grad)
    for actual, expected in zip(gradients, leaves):
        for got, wanted in zip(actual, expected):
            close(got, wanted.grad)


def test_embedding(run):
    ids, d, d_table = torch.randint(VOCAB, (T,), dtype=torch.int32), new(T, H), torch.zeros(VOCAB, H)
    run("embed_backward", ids=ids, d_out=d, d_table=d_table)
    table = leaf(new(VOCAB, H))
    table[ids.long()].backward(d.double())
    close(d_table, table.grad)


def test_rope(run):
    x, d, dx = new(T, 2, H), new(T, 2, H), torch.empty(T, 2, H)
    positions, n = torch.randint(100, (T,), dtype=torch.int32), 16
    inv_freq = torch.tensor([100.0 ** (-i / n) for i in range(n)])
    run("rope", x=d, positions=positions, inv_freq=inv_freq, n_freqs=n, inverse=1, out=dx)
    a = leaf(x)
    angle = (positions[:, None] * inv_freq).double()[:, None]
    first, second, rest = a[..., :n], a[..., n : 2 * n], a[..., 2 * n :]
    turned = [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest]
    torch.cat(turned, -1).backward(d.double())
    close(dx, a.grad)


@pytest.mark.parametrize("one_plus", [0, 1])
def test_layernorm(run, one_plus):
    x, w, bias, d = new(T, H), new(H), new(H), new(T, H)
    out, dx, d_weight, d_bias = torch.empty(T, H), torch.empty(T, H), torch.ones(H), torch.zeros(H)
    run("layernorm", x=x, weight=w, bias=bias, eps=1e-3, one_plus=one_plus, out=out)
    run("layernorm_backward", x=x, weight=w, eps=1e-3, one_plus=one_plus, d_out=d, dx=dx, d_weight=d_weight,
        d_bias=d_bias)
    a, b, c = leaf(x), leaf(w), leaf(bias)
    y = torch.nn.functional.layer_norm(a, (H,), b + one_plus, c, 1e-3)
    y.backward(d.double())
    close(out, y)
    close(dx, a.grad)
    close(d_weight, b.grad + 1)
    close(d_bias, c.grad)


def view(cu_seqlens, **lanes):
    """msa_kv_view of packed documents."""
    return bytes(arguments("msa_kv_view", cu_seqlens_k=cu_seqlens, n_seqs=len(cu_seqlens) - 1, **lanes))


def rows_of(lengths, width):
    """Some visible tokens of each query, -1 behind them, and which (query, key) pairs of the packed keys that is."""
    n, rows = sum(lengths), []
    listed = torch.zeros(n, n, dtype=torch.bool)
    for begin, length in zip([sum(lengths[:i]) for i in range(len(lengths))], lengths):
        for i in range(length):
            row = torch.randperm(i + 1)[: min(width, i // 2 + 1)].sort().values
            listed[begin + i, begin + row] = True
            rows.append(torch.nn.functional.pad(row, (0, width - len(row)), value=-1))
    return torch.stack(rows).int(), listed


LENGTHS, HEADS, GROUPS, DIM = (31, 59), 4, 2, 16


def attention_scores(q, k):
    return torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(HEADS // GROUPS, 1)) / DIM**0.5


def test_attention_over_tokens(run):
    n, (tokens, listed) = sum(LENGTHS), rows_of(LENGTHS, 9)
    q, k, v, d = new(n, HEADS, DIM), new(n, GROUPS, DIM), new(n, GROUPS, DIM), new(n, HEADS, DIM)
    cu_seqlens = torch.tensor([0, LENGTHS[0], n], dtype=torch.int32)
    out, lse, dq = torch.empty(n, HEADS, DIM), torch.empty(n, HEADS), torch.empty(n, HEADS, DIM)
    dk, dv = torch.empty(n, GROUPS, DIM), torch.empty(n, GROUPS, DIM)
    call = dict(q=q, kv=view(cu_seqlens, k=k, v=v), cu_seqlens_q=cu_seqlens, tokens=tokens, out=out, lse=lse)
    run("token_attend", **call)
    run("token_attend_backward", **call, d_out=d, dq=dq, dk=dk, dv=dv)
    leaves = [leaf(t) for t in (q, k, v)]
    scores = attention_scores(*leaves[:2]).masked_fill(~listed, -torch.inf)
    y = torch.einsum("hij,jhd->ihd", scores.softmax(-1), leaves[2].repeat_interleave(HEADS // GROUPS, 1))
    y.backward(d.double())
    close(out, y)
    for gradient, of in zip((dq, dk, dv), leaves):
        close(gradient, of.grad)


@pytest.mark.parametrize("warm_up", [False, True])
def test_kl_of_tokens(run, warm_up):
    n, index_heads, (tokens, listed) = sum(LENGTHS), 3, rows_of(LENGTHS, 9)
    if warm_up:
        listed = torch.block_diag(*(torch.ones(m, m).tril() for m in LENGTHS)) > 0
    q, k, q_index, k_index = new(n, HEADS, DIM), new(n, GROUPS, DIM), new(n, index_heads, DIM), new(n, DIM)
    weights, cu_seqlens = new(n, index_heads), torch.tensor([0, LENGTHS[0], n], dtype=torch.int32)
    scores = attention_scores(q.double(), k.double()).masked_fill(~listed, -torch.inf)
    teacher, lse = scores.softmax(-1).mean(0), scores.logsumexp(-1).T.float().contiguous()
    loss, dq, d_weights, dk = torch.empty(n), torch.empty_like(q_index), torch.empty_like(weights), torch.empty(n, DIM)
    run("token_kl", q=q, q_index=q_index, weights=weights, kv=view(cu_seqlens, k=k, k_index=k_index),
        cu_seqlens_q=cu_seqlens, weight=0.5, lse=lse, loss=loss, dq_index=dq, d_weights=d_weights, dk_index=dk,
        **({} if warm_up else {"tokens": tokens}))
    leaves = [leaf(t) for t in (q_index, weights, k_index)]
    products = torch.einsum("ihd,jd->ihj", leaves[0], leaves[2]).relu()
    index = torch.einsum("ih,ihj->ij", leaves[1], products) / (index_heads * DIM) ** 0.5
    student = index.masked_fill(~listed, -torch.inf).log_softmax(-1)
    terms = (teacher * (teacher.log() - student)).masked_fill(~listed, 0)
    (0.5 * terms.sum()).backward()
    close(loss, terms.sum(-1))
    for gradient, of in zip((dq, d_weights, dk), leaves):
        close(gradient, of.grad)


def test_lightning(run):
    """The recurrence (L20), (L21) over two documents; chunks of the operator are shorter than the longer one."""
    n, heads, dim, lengths = 150, 3, 16, (31, 119)
    q, k, v, d = (new(n, heads, dim) for _ in range(4))
    dq, dk, dv = (torch.empty(n, heads, dim) for _ in range(3))
    slopes = torch.tensor([0.0, 0.05, 1.0])
    cu_seqlens = torch.tensor([0, lengths[0], n], dtype=torch.int32)
    run("lightning_backward", q=q, k=k, v=v, cu_seqlens_q=cu_seqlens, slopes=slopes, n_seqs=2, d_out=d, dq=dq, dk=dk,
        dv=dv)
    leaves = [leaf(t) for t in (q, k, v)]
    silu, decay = torch.nn.functional.silu, torch.exp(-slopes.double())[:, None, None]
    outputs = []
    for document in zip(*(torch.split(t, lengths) for t in leaves)):
        state = torch.zeros(heads, dim, dim, dtype=torch.float64)
        for a, b, c in zip(*document):
            state = decay * state + silu(b)[:, :, None] * silu(c)[:, None, :]
            outputs.append((silu(a)[:, None, :] @ state)[:, 0])
    torch.stack(outputs).backward(d.double())
    for gradient, of in zip((dq, dk, dv), leaves):
        close(gradient, of.grad)


def test_sigmoid_gate(run):
    x, gate, d = new(T, I), new(T, I, scale=3), new(T, I)
    dx, d_gate = torch.empty(T, I), torch.empty(T, I)
    run("sigmoid_gate_backward", x=x, gate=gate, d_out=d, dx=dx, d_gate=d_gate)
    a, b = leaf(x), leaf(gate)
    (a * torch.sigmoid(b)).backward(d.double())
    close(dx, a.grad)
    close(d_gate, b.grad)


def test_cross_entropy(run):
    logits, targets = new(T, VOCAB, scale=5), torch.randint(VOCAB, (T,), dtype=torch.int32)
    targets[::5] = -1
    loss, d_logits = torch.empty(T), torch.empty(T, VOCAB)
    run("cross_entropy", logits=logits, targets=targets, weight=0.25, loss=loss, d_logits=d_logits)
    a = leaf(logits)
    expected = torch.nn.functional.cross_entropy(a, targets.long(), ignore_index=-1, reduction="none")
    (0.25 * expected.sum()).backward()
    close(loss, expected.detach())
    close(d_logits, a.grad)


def test_adamw(run):
    p, m, v, copy = new(999), torch.zeros(999), torch.zeros(999), torch.empty(999, dtype=torch.bfloat16)
    parameter = leaf(p)
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 31):
        gradient = new(999)
        run("adamw", n=999, parameters=p, gradient=gradient, m=m, v=v, copy=copy, step=step, lr=1e-2, beta1=0.9,
            beta2=0.95, eps=1e-8, weight_decay=0.1, gradient_scale=0.5)
        parameter.grad = 0.5 * gradient.double()
        optimizer.step()
    close(p, parameter.detach())
    assert torch.equal(copy, p.bfloat16())
