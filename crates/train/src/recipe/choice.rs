//! Closed sets of names in a recipe: each is one enum, and its names are written once.

/// An enum whose variants have names in a recipe.
pub trait Choice: Copy + 'static {
    /// Every variant, in the order in which messages list them.
    const ALL: &'static [Self];

    /// The name as a recipe writes it.
    fn name(self) -> &'static str;
}

/// Declares an enum with its recipe names, and with them [`Choice`], `Display` and `Serialize`.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl Choice for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(Choice::name(*self))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(Choice::name(*self))
            }
        }
    };
}

choice! {
    /// What numbers the arithmetic uses.
    Precision {
        /// 32-bit floats.
        F32 = "f32",
    }
}

choice! {
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

choice! {
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

choice! {
    /// How AdamW holds the moments of large parameters.
    States {
        /// 32-bit floats: 8 bytes a weight.
        F32 = "f32",
        /// Eight bits in blocks of 256 that share a scale: 2 bytes a weight.
        EightBit = "8bit",
    }
}

choice! {
    /// When weights are updated.
    Update {
        /// After the backward pass, when all gradients are there.
        AfterBackward = "after-backward",
        /// During the backward pass, each as soon as its gradient is final, which is then freed.
        InBackward = "in-backward",
    }
}

choice! {
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
    }
}

choice! {
    /// How rows are chosen and weighted (`docs/wta-crs.md`).
    Estimator {
        /// All rows.
        Exact = "exact",
        /// The most probable rows, unweighted. Biased; for ablations.
        TopK = "topk",
        /// Column-row sampling: draws with replacement.
        Crs = "crs",
        /// The paper's: the most probable rows for certain, draws with replacement from the rest.
        Wta = "wta",
        /// Systematic sampling with probability proportional to size.
        Pps = "pps",
    }
}

choice! {
    /// Where the norms of the output gradients come from, best first.
    NormSource {
        /// The true norms: rows are drawn in the backward pass.
        Current = "current",
        /// The norms that this example's tokens had when it was last seen.
        Cached = "cached",
        /// A moving average per site over position and token class.
        Running = "running",
        /// None: every row counts as equally large.
        Uniform = "uniform",
    }
}

choice! {
    /// Where the norm cache lives.
    CacheIn {
        /// In memory.
        Memory = "memory",
        /// In a mapped file in the run folder.
        File = "file",
    }
}

choice! {
    /// What an exception makes a site keep.
    SiteKeep {
        /// A sample of the rows: linears only.
        Rows = "rows",
        /// All of it.
        Exact = "exact",
        /// Nothing of its own, but what the op before it keeps: linears and attention only.
        Rebuild = "rebuild",
        /// All of it in int8.
        Int8 = "int8",
        /// All of it in int4; not a ReLU.
        Int4 = "int4",
        /// All of it in bfloat16; not a ReLU.
        Bf16 = "bf16",
    }
}
