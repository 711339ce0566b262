"""Hugging Face's MiniMax-M3 on msa's operators: equal logits, prefill, chunks and generation."""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers.models.minimax_m3_vl", reason="needs transformers with MiniMax-M3")

import msa.hf  # noqa: E402
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig  # noqa: E402
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def tiny_model(dtype=torch.float32, head_dim=32, block_size=16):
    torch.manual_seed(7)
    config = MiniMaxM3VLTextConfig(
        vocab_size=211, hidden_size=64, intermediate_size=48, dense_intermediate_size=96,
        shared_intermediate_size=48, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
        head_dim=head_dim, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=4096,
        index_n_heads=2, index_head_dim=head_dim, index_block_size=block_size, index_topk_blocks=3,
        index_local_blocks=1, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})
    config._attn_implementation = "eager"
    return MiniMaxM3VLForCausalLM(config).eval().to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_rows,n_tokens", [(1, 1), (1, 150), (2, 97)])
@torch.no_grad()
def test_logits_equal(device, n_rows, n_tokens):
    model = tiny_model().to(device)
    ids = torch.randint(0, 211, (n_rows, n_tokens), device=device)
    expected = model(ids).logits
    got = msa.hf.enable(model)(ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    again = msa.hf.disable(model, "eager")(ids).logits
    assert torch.equal(again, expected)


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_bf16_is_as_near_to_f32_as_eager(device):
    """Head dim and blocks of the real model, where a GPU has kernels of its own."""
    model = tiny_model(head_dim=128, block_size=128).to(device)
    ids = torch.randint(0, 211, (1, 900), device=device)
    exact = model(ids).logits
    model = model.to(torch.bfloat16)
    naive = (model(ids).logits.float() - exact).square().mean().sqrt()
    got = msa.hf.enable(model)(ids).logits.float()
    assert (got - exact).square().mean().sqrt() <= 2 * naive


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_generation_equals_eager(device):
    model = tiny_model().to(device)
    ids = torch.randint(0, 211, (1, 90), device=device)
    args = {"max_new_tokens": 20, "do_sample": False}
    expected = model.generate(ids, **args)
    msa.hf.enable(model)
    assert torch.equal(model.generate(ids, **args), expected)
    assert torch.equal(model.generate(ids, cache_implementation="static", **args), expected)


@torch.no_grad()
def test_padding_is_refused():
    model = msa.hf.enable(tiny_model())
    ids = torch.randint(0, 211, (2, 40))
    padding = torch.ones_like(ids)
    padding[1, 30:] = 0
    with pytest.raises(msa.InvalidArgument, match="marks padding"):
        model(ids, attention_mask=padding)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


def test_training_is_refused():
    model = msa.hf.enable(tiny_model())
    with pytest.raises(msa.InvalidArgument, match="inference"):
        model(torch.randint(0, 211, (1, 40)))


def test_other_models_are_refused():
    with pytest.raises(msa.InvalidArgument, match="MiniMax-M3"):
        msa.hf.enable(torch.nn.Linear(2, 2))
