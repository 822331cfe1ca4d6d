//! Closed sets of names in a recipe; those of the crates below are theirs.

use colrow_tensor::{Estimator, Named, named};

named! {
    /// Which parameters are trained.
    Method {
        /// All of them, but those that `freeze` names.
        Full = "full",
        /// Low-rank adapters (`[lora]`) and `train.modules_to_save`.
        Lora = "lora",
        /// As `lora`, with A frozen: only B and `train.modules_to_save`.
        LoraFa = "lora-fa",
        /// Biases and `train.modules_to_save`.
        BitFit = "bitfit",
    }
}

named! {
    /// Where the log of a run goes beside `metrics.jsonl`, which is always there: reports and resumed runs read it.
    Logger {
        /// To that file alone.
        Jsonl = "jsonl",
        /// To event files in the folder `tensorboard`.
        TensorBoard = "tensorboard",
    }
}

named! {
    /// What the learning rate does after the warm-up.
    Schedule {
        /// Falls in a straight line to 0 at the last step.
        Linear = "linear",
        /// Falls in half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Stays.
        Constant = "constant",
    }
}

named! {
    /// A policy: which site keeps what.
    PolicyName {
        /// Every op keeps all that its gradient needs.
        Exact = "exact",
        /// The published system: rows for the attention output, both feed-forward linears and the adapters.
        Paper = "paper",
        /// int8 of norms, activations, q, k and v; linears rebuild their inputs, and their rows are drawn in the backward pass.
        Lean = "lean",
        /// As `lean`, and q, k and v are rebuilt too, by one more product.
        Leanest = "leanest",
        /// As `lean`, and of every block its input alone is kept: the block runs again in the backward pass.
        Recompute = "recompute",
    }
}

/// What a site's weight gradient is computed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Estimate {
    /// All rows.
    Exact,
    /// Rows that this estimator chooses and weights.
    By(Estimator),
}

impl Named for Estimate {
    const ALL: &'static [Self] = &[
        Self::Exact,
        Self::By(Estimator::TopK),
        Self::By(Estimator::Crs),
        Self::By(Estimator::Wta),
        Self::By(Estimator::Pps),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::By(estimator) => estimator.name(),
        }
    }
}

named!(@by_name Estimate);

named! {
    /// Where the norm cache lives.
    CacheIn {
        /// In memory.
        Memory = "memory",
        /// In a mapped file in the run folder.
        File = "file",
    }
}

named! {
    /// What an exception makes a site keep.
    SiteKeep {
        /// A sample of the rows: linears only.
        Rows = "rows",
        /// All of it.
        Exact = "exact",
        /// Nothing of its own, but what the op before it keeps, linears and attention only; a block runs again from what the block before it keeps.
        Rebuild = "rebuild",
        /// All of it in int8.
        Int8 = "int8",
        /// All of it in int4; not a ReLU.
        Int4 = "int4",
        /// All of it in bfloat16; not a ReLU.
        Bf16 = "bf16",
        /// The input in int8, to run again from: blocks only.
        Recompute = "recompute",
    }
}
