//! Which tensors a decoder has, what either format calls them, and in which order GGUF has the rows of q and k.

use super::sizes::{Architecture, Sizes};

/// A tensor in both formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name in GGUF.
    pub gguf: String,
    /// Its key in safetensors.
    pub key: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// How GGUF has its rows.
    pub order: Order,
}

/// The order of a tensor's rows in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As in safetensors.
    Same,
    /// Rows of each head of so many stand in pairs: row `j` of the first half, row `j` of the second. For there rotary positions turn neighbours,
    /// and here halves.
    Pairs(usize),
}

impl Order {
    /// Elements that stay together, in a tensor of this shape; `None` if all do.
    pub(super) fn unit(self, shape: &[usize]) -> Option<usize> {
        match self {
            Self::Same => None,
            Self::Pairs(head) => Some(head * shape[1..].iter().product::<usize>()),
        }
    }

    /// From pairs to halves: a unit as GGUF has it, as safetensors has it.
    pub(super) fn to_halves(self, unit: &[f32], out: &mut Vec<f32>) {
        self.rows(unit, out, |row, head| row % (head / 2) * 2 + row / (head / 2));
    }

    /// From halves to pairs.
    pub(super) fn to_pairs(self, unit: &[f32], out: &mut Vec<f32>) {
        self.rows(unit, out, |row, head| row % 2 * (head / 2) + row / 2);
    }

    fn rows(self, unit: &[f32], out: &mut Vec<f32>, from: impl Fn(usize, usize) -> usize) {
        out.clear();
        let Self::Pairs(head) = self else {
            out.extend(unit);
            return;
        };
        let width = unit.len() / head;
        for row in 0..head {
            out.extend(&unit[from(row, head) * width..][..width]);
        }
    }
}

/// All tensors of a decoder.
pub fn places(sizes: &Sizes) -> Vec<Place> {
    let &Sizes { hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = sizes;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let pairs = match sizes.architecture {
        Architecture::Llama => Order::Pairs(head_dim),
        Architecture::Qwen2 | Architecture::Qwen3 => Order::Same,
    };
    let mut all = Vec::new();
    let mut add = |gguf: String, key: String, shape: &[usize], order| {
        all.push(Place { gguf, key, shape: shape.to_vec(), order });
    };
    add("token_embd.weight".into(), "model.embed_tokens.weight".into(), &[vocab, hidden], Order::Same);
    for n in 0..sizes.layers {
        let mut part = |name: &str, key: &str, shape: &[usize], order, bias: bool| {
            let (name, key) = (format!("blk.{n}.{name}"), format!("model.layers.{n}.{key}"));
            if bias {
                add(format!("{name}.bias"), format!("{key}.bias"), &shape[..1], order);
            }
            add(format!("{name}.weight"), format!("{key}.weight"), shape, order);
        };
        let bias = sizes.attention_bias;
        part("attn_norm", "input_layernorm", &[hidden], Order::Same, false);
        part("attn_q", "self_attn.q_proj", &[q, hidden], pairs, bias);
        part("attn_k", "self_attn.k_proj", &[kv, hidden], pairs, bias);
        part("attn_v", "self_attn.v_proj", &[kv, hidden], Order::Same, bias);
        part("attn_output", "self_attn.o_proj", &[hidden, q], Order::Same, sizes.output_bias);
        if sizes.architecture == Architecture::Qwen3 {
            part("attn_q_norm", "self_attn.q_norm", &[head_dim], Order::Same, false);
            part("attn_k_norm", "self_attn.k_norm", &[head_dim], Order::Same, false);
        }
        part("ffn_norm", "post_attention_layernorm", &[hidden], Order::Same, false);
        part("ffn_gate", "mlp.gate_proj", &[intermediate, hidden], Order::Same, sizes.mlp_bias);
        part("ffn_up", "mlp.up_proj", &[intermediate, hidden], Order::Same, sizes.mlp_bias);
        part("ffn_down", "mlp.down_proj", &[hidden, intermediate], Order::Same, sizes.mlp_bias);
    }
    add("output_norm.weight".into(), "model.norm.weight".into(), &[hidden], Order::Same);
    if !sizes.tied {
        add("output.weight".into(), "lm_head.weight".into(), &[vocab, hidden], Order::Same);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_neighbours_there_and_halves_here() {
        // rows 0 1 2 3 of a head: there 0 2 1 3
        let order = Order::Pairs(4);
        let unit = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5];
        let (mut pairs, mut halves) = (Vec::new(), Vec::new());
        order.to_pairs(&unit, &mut pairs);
        assert_eq!(pairs, [0.0, 0.5, 2.0, 2.5, 1.0, 1.5, 3.0, 3.5]);
        order.to_halves(&pairs, &mut halves);
        assert_eq!(halves, unit);
        assert_eq!((order.unit(&[8, 2]), order.unit(&[8]), Order::Same.unit(&[8, 2])), (Some(8), Some(4), None));
    }
}
