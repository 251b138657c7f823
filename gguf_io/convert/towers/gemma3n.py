"""What sees in Gemma 3n, a convolutional net (MobileNetV5), and what hears (a conformer), which llama.cpp keeps in the
file and does not run yet.

The shapes of the net are those of timm's mobilenetv5_300m_enc, all that config.json says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantmill.gguf_io.convert.conformer import convolutions, of_layers, sizes
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, STRING, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import SIZES, Tensor, Tower, always_f16, always_f32

_NET = "vision_tower.timm_model."
Shapes = dict[str, str]
Numbers = Callable[[Config], Iterable[tuple[int, int]]]


def _edge(into: str, out: str) -> Shapes:
    wide = f"4*{into}"
    return {
        "conv_exp.weight": f"{wide} {into} 3 3",
        "bn1.weight": wide,
        "conv_pwl.weight": f"{out} {wide} 1 1",
        "bn2.weight": out,
    }


def _inverted(into: str, out: str, wider: int, first: int = 0, middle: int = 0) -> Shapes:
    """wider: how many times wider it is inside. first, middle: sides of the convolutions of each channel, 0: none."""
    wide = f"{wider}*{into}"
    return {
        **(
            {"dw_start.conv.weight": f"{into} 1 {first} {first}", "dw_start.bn.weight": into} if first else {}
        ),
        "pw_exp.conv.weight": f"{wide} {into} 1 1",
        "pw_exp.bn.weight": wide,
        **({"dw_mid.conv.weight": f"{wide} 1 {middle} {middle}", "dw_mid.bn.weight": wide} if middle else {}),
        "pw_proj.conv.weight": f"{out} {wide} 1 1",
        "pw_proj.bn.weight": out,
        "layer_scale.gamma": out,
    }


def _attention(width: str, stage: int, narrowed: bool) -> Shapes:
    """narrowed: whether keys and values are of every second position."""
    found = {
        "norm.weight": width,
        "attn.query.proj.weight": f"heads_{stage}*head_dim_{stage} {width} 1 1",
        "attn.key.proj.weight": f"head_dim_{stage} {width} 1 1",
        "attn.value.proj.weight": f"head_dim_{stage} {width} 1 1",
        "attn.output.proj.weight": f"{width} heads_{stage}*head_dim_{stage} 1 1",
        "layer_scale.gamma": width,
    }
    for which in ("key", "value") if narrowed else ():
        found |= {f"attn.{which}.down_conv.weight": f"{width} 1 3 3", f"attn.{which}.norm.weight": width}
    return found


def _tensor(stage: int, block: str, name: str, shape: str, numbers: Numbers | None = None) -> Tensor:
    """llama.cpp's encoder takes a scale of each channel as [1, C, 1, 1] only, its converter writes [C]."""
    here, there = f"{_NET}blocks.{stage}.{block}.{name}", f"v.blk.{stage}.{block}.{name}"
    if name.startswith("layer_scale."):
        return Tensor(here, there, shape, numbers, type=always_f32, becomes=f"1 {shape} 1 1")
    return Tensor(here, there, shape, numbers)


def _blocks(stage: int, first: int, blocks: Iterable[Shapes]) -> tuple[Tensor, ...]:
    return tuple(
        _tensor(stage, str(i), name, shape)
        for i, shapes in enumerate(blocks, first)
        for name, shape in shapes.items()
    )


def _pairs(stage: int, first: int, narrowed: bool) -> tuple[Tensor, ...]:
    """Attention and an inverted block behind it, again and again."""
    width = f"stage_{stage}_size"
    return tuple(
        _tensor(stage, "{}", name, shape, _every_second(stage, place))
        for place, shapes in (
            (first, _attention(width, stage, narrowed)),
            (first + 1, _inverted(width, width, 2)),
        )
        for name, shape in shapes.items()
    )


def _every_second(stage: int, first: int) -> Numbers:
    return lambda config: ((i, i) for i in range(first, first + 2 * config[f"pairs_{stage}"], 2))


def _stages() -> tuple[Tensor, ...]:
    zero, one, two, three = (f"stage_{i}_size" for i in range(4))
    return (
        *_blocks(0, 0, (_edge("stem_size", zero), _edge(zero, zero), _edge(zero, zero))),
        *_blocks(
            1, 0, (_inverted(zero, one, 6, 3, 5), *(_inverted(one, one, 4, side) for side in (5, 3, 5, 3)))
        ),
        *_blocks(2, 0, (_inverted(one, two, 6, 5, 5), *(_inverted(two, two, 4, 5) for _ in range(7)))),
        *_blocks(2, 8, (_inverted(two, two, 1),)),
        *_pairs(2, 9, narrowed=True),
        *_blocks(3, 0, (_inverted(two, three, 6, 5, 5),)),
        *_pairs(3, 1, narrowed=False),
    )


_JOINED = "stage_2_size+stage_3_size"
_TWICE = "2*stage_2_size+2*stage_3_size"


def _embedder(which: str, into: str, width: str, vocabulary: str) -> tuple[Tensor, ...]:
    return (
        Tensor(f"embed_{which}.embedding.weight", f"{into}.embedding.weight", f"{vocabulary} {width}"),
        Tensor(f"embed_{which}.hard_embedding_norm.weight", f"{into}.hard_emb_norm.weight", width),
        Tensor(f"embed_{which}.soft_embedding_norm.weight", f"{into}.soft_emb_norm.weight", width),
        Tensor(
            f"embed_{which}.embedding_projection.weight",
            f"{into}.input_projection.weight",
            f"text_size {width}",
        ),
    )


_SEES = (
    Tensor(f"{_NET}conv_stem.conv.weight", "v.conv_stem.conv.weight", "stem_size 3 3 3", type=always_f32),
    Tensor(
        f"{_NET}conv_stem.conv.bias",
        "v.conv_stem.conv.bias",
        "stem_size",
        type=always_f32,
        becomes="1 stem_size 1 1",
    ),
    Tensor(f"{_NET}conv_stem.bn.weight", "v.conv_stem.bn.weight", "stem_size"),
    *_stages(),
    Tensor(f"{_NET}msfa.ffn.pw_exp.conv.weight", "v.msfa.ffn.pw_exp.conv.weight", f"{_TWICE} {_JOINED} 1 1"),
    Tensor(f"{_NET}msfa.ffn.pw_exp.bn.weight", "v.msfa.ffn.pw_exp.bn.weight", _TWICE),
    Tensor(
        f"{_NET}msfa.ffn.pw_proj.conv.weight", "v.msfa.ffn.pw_proj.conv.weight", f"hidden_size {_TWICE} 1 1"
    ),
    Tensor(f"{_NET}msfa.ffn.pw_proj.bn.weight", "v.msfa.ffn.pw_proj.bn.weight", "hidden_size"),
    Tensor(f"{_NET}msfa.norm.weight", "v.msfa.norm.weight", "hidden_size"),
    *_embedder("vision", "mm", "hidden_size", "vocab_size"),
)


_of_hearing_layers = of_layers("audio_conf_num_hidden_layers")


_WIDTH, _LAYER = "audio_hidden_size", "audio_tower.conformer.{}."
_SQUARE = f"{_WIDTH} {_WIDTH}"
_OF_LAYERS = (
    *((f"attention.attn.{which}_proj", f"attn_{which}", _SQUARE) for which in "qkv"),
    ("attention.attn.relative_position_embedding.pos_proj", "linear_pos", _SQUARE),
    ("attention.post", "attn_out", _SQUARE),
    ("attention.pre_attn_norm", "ln1", _WIDTH),
    ("attention.post_norm", "ln2", _WIDTH),
    *(
        (f"ffw_layer_{here}.{name}", f"ffn_{there}{end}", shape)
        for here, end in (("start", ""), ("end", "_1"))
        for name, there, shape in (
            ("pre_layer_norm", "norm", _WIDTH),
            ("ffw_layer_1", "up", f"4*{_WIDTH} {_WIDTH}"),
            ("ffw_layer_2", "down", f"{_WIDTH} 4*{_WIDTH}"),
            ("post_layer_norm", "post_norm", _WIDTH),
        )
    ),
    ("lconv1d.pre_layer_norm", "conv_norm", _WIDTH),
    ("lconv1d.linear_start", "conv_pw1", f"2*{_WIDTH} {_WIDTH}"),
    ("lconv1d.conv_norm", "norm_conv", _WIDTH),
    ("lconv1d.linear_end", "conv_pw2", _SQUARE),
    ("norm", "layer_pre_norm", _WIDTH),
)
_HEARS = (
    *(
        Tensor(f"{_LAYER}{here}.weight", f"a.blk.{{}}.{there}.weight", shape, _of_hearing_layers)
        for here, there, shape in _OF_LAYERS
    ),
    Tensor(
        f"{_LAYER}attention.attn.per_dim_scale",
        "a.blk.{}.per_dim_scale",
        "audio_head_dim",
        _of_hearing_layers,
    ),
    Tensor(
        f"{_LAYER}lconv1d.depthwise_conv1d.weight",
        "a.blk.{}.conv_dw.weight",
        f"{_WIDTH} 1 audio_conf_conv_kernel_size",
        _of_hearing_layers,
        type=always_f32,
    ),
    *convolutions("conv_"),
    Tensor(
        "audio_tower.subsample_conv_projection.input_proj_linear.weight",
        "a.pre_encode.out.weight",
        f"{_WIDTH} audio_flat",
        type=always_f16,
    ),
    *_embedder("audio", "mm.a", _WIDTH, "audio_vocab_size"),
)

SEES_AND_HEARS = Tower(
    classes=("Gemma3nForConditionalGeneration",),
    hears=True,
    prefix=r"model\.(?=vision_tower\.|embed_vision\.|audio_tower\.|embed_audio\.)",
    tensors=(*_SEES, *_HEARS),
    keys=(
        *SIZES,
        written("has_audio_encoder", lambda config: True, BOOL),
        Key("text_size", "audio.projection_dim", needed=True),
        Key(_WIDTH, "audio.embedding_length"),
        Key("audio_intermediate_size", "audio.feed_forward_length"),
        Key("audio_conf_num_hidden_layers", "audio.block_count"),
        Key("audio_conf_num_attention_heads", "audio.attention.head_count"),
        written("vision.projector_type", lambda config: "gemma3nv", STRING),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        written("audio.projector_type", lambda config: "gemma3na", STRING),
        Key("audio_input_feat_size", "audio.num_mel_bins"),
        written("audio.attention.layer_norm_epsilon", lambda config: 1e-5, FLOAT32),
    ),
    prepared=("image_seq_length", "size"),
    # The first are what llama.cpp's converter says of a net that has no layers of one kind.
    fixed={"num_hidden_layers": 128, "prepared_image_mean": [0.0] * 3, "prepared_image_std": [1.0] * 3},
    only={"architecture": "mobilenetv5_300m_enc"},
    defaults={
        "hidden_size": 2048,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 8,
        "prepared_image_seq_length": 256,
        "vocab_size": 128,
        # What the architecture stands for; no checkpoint says otherwise.
        "stem_size": 64,
        **dict(zip((f"stage_{i}_size" for i in range(4)), (128, 256, 640, 1280), strict=True)),
        "pairs_2": 14,
        "heads_2": 12,
        "head_dim_2": 64,
        "pairs_3": 19,
        "heads_3": 16,
        "head_dim_3": 96,
        _WIDTH: 1536,
        "audio_conf_conv_kernel_size": 5,
        "audio_conf_num_attention_heads": 8,
        "audio_conf_num_hidden_layers": 12,
        "audio_input_feat_size": 128,
        "audio_intermediate_size": 6144,
        "audio_vocab_size": 128,
        **sizes("audio_sscp_conv_channel_size"),
        "audio_head_dim": lambda config: config[_WIDTH] // config["audio_conf_num_attention_heads"],
        "image_size": lambda config: config.get("prepared_size", {"height": 768}).get("height"),
        "patch_size": lambda config: config["image_size"] // config["prepared_image_seq_length"],
        "intermediate_size": lambda config: 8192,
    },
)

TOWERS = (SEES_AND_HEARS,)
