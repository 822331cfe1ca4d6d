//! Layers that model families share.

use std::ops::Range;

use colrow_autograd::{Head, HeadAdapter, LowRank, ParamId, Tape, Var};

use crate::registry::{Init, Part, Registry};

/// `y = x·Wᵀ + b`, or without b, and what adapters add to it.
#[derive(Clone, Debug)]
pub struct Dense {
    site: String,
    weight: ParamId,
    bias: Option<ParamId>,
    modules: Vec<(String, Range<usize>)>,
    inputs: usize,
    adapter: Option<LowRank>,
}

/// A linear of the checkpoint.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name: its tensors' without `.weight` and `.bias`.
    pub name: String,
    /// Its outputs.
    pub outputs: usize,
    /// The keys of `config.json` that set its outputs and its inputs.
    pub dims: &'static [&'static str; 2],
    /// Standard deviation of new weights.
    pub std: f64,
}

impl Dense {
    /// The dense layer at `site`: linears of the checkpoint that read the same `inputs` columns, stacked by rows in one weight.
    pub fn new(registry: &mut Registry, site: &str, modules: &[Module], inputs: usize, bias: bool) -> Self {
        let part = |module: &Module, tensor: &str, dims: &'static [&'static str], init: Init| {
            let key = format!("{}.{tensor}", module.name);
            Part { key, rows: module.outputs, dims, init }
        };
        let weights: Vec<_> = modules.iter().map(|m| part(m, "weight", m.dims, Init::Normal(m.std))).collect();
        let biases: Vec<_> = modules.iter().map(|m| part(m, "bias", &m.dims[..1], Init::Zeros)).collect();
        let weight = registry.add_stacked(&weights, &[inputs]);
        let bias = bias.then(|| registry.add_stacked(&biases, &[]));
        let mut first = 0;
        let of = |m: &Module| {
            let rows = first..first + m.outputs;
            first = rows.end;
            (m.name.clone(), rows)
        };
        let modules = modules.iter().map(of).collect();
        Self { site: site.to_owned(), weight, bias, modules, inputs, adapter: None }
    }

    /// The linear of the checkpoint's module `name` whose weight is a table's, such as a head's that is tied to the embedding.
    pub fn tied(name: &str, weight: ParamId, outputs: usize, inputs: usize) -> Self {
        let modules = vec![(name.to_owned(), 0..outputs)];
        Self { site: name.to_owned(), weight, bias: None, modules, inputs, adapter: None }
    }

    /// Its place in policies and ledger.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The place of its adapters in policies and ledger, if it has any.
    pub fn adapter_site(&self) -> Option<String> {
        self.adapter.as_ref().map(|_| format!("{}.lora", self.site))
    }

    /// Its weight: the modules' stacked by rows.
    pub(crate) fn weight(&self) -> ParamId {
        self.weight
    }

    /// Gives it another weight of the same shape.
    pub(crate) fn set_weight(&mut self, weight: ParamId) {
        self.weight = weight;
    }

    /// Without a bias, as the head of a language model: its weight, and its adapter, of which there is one.
    pub fn head(&self, scale: f64) -> Head {
        let adapter = self.adapter.as_ref().map(|LowRank { a, b, scale, dropout }| HeadAdapter {
            a: *a,
            b: b[0].0,
            scale: *scale,
            dropout: *dropout,
        });
        Head { adapter, ..Head::new(self.weight, scale) }
    }

    /// The checkpoint's modules that are stacked here, and the outputs that are theirs.
    pub fn modules(&self) -> &[(String, Range<usize>)] {
        &self.modules
    }

    /// Its inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Its adapters.
    pub(crate) fn adapter_mut(&mut self) -> &mut Option<LowRank> {
        &mut self.adapter
    }

    /// x (n, in) to (n, out).
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Var {
        let y = tape.linear(&self.site, x, self.weight, self.bias);
        match (&self.adapter, self.adapter_site()) {
            (Some(adapter), Some(site)) => tape.low_rank(&site, y, x, adapter),
            _ => y,
        }
    }
}

/// Columns of a norm, and the key of `config.json` that sets them.
#[derive(Clone, Copy, Debug)]
pub struct Width {
    /// Columns.
    pub d: usize,
    /// Their key.
    pub dims: &'static [&'static str; 1],
}

/// Layer norm with scale and shift, or root mean square norm with a scale.
#[derive(Clone, Debug)]
pub struct Norm {
    site: String,
    gamma: ParamId,
    beta: Option<ParamId>,
    eps: f64,
}

impl Norm {
    /// The layer norm at `site` over the columns of `width`, its tensors under `prefix` + `site`.
    pub fn new(registry: &mut Registry, prefix: &str, site: &str, Width { d, dims }: Width, eps: f64) -> Self {
        let key = |kind: &str| format!("{prefix}{site}.{kind}");
        let gamma = registry.add(&key("weight"), &[d], dims, Init::Ones);
        let beta = Some(registry.add(&key("bias"), &[d], dims, Init::Zeros));
        Self { site: site.to_owned(), gamma, beta, eps }
    }

    /// The root mean square norm at `site` over the columns of `width`, its tensor under `prefix` + `site`.
    pub fn rms(registry: &mut Registry, prefix: &str, site: &str, Width { d, dims }: Width, eps: f64) -> Self {
        let gamma = registry.add(&format!("{prefix}{site}.weight"), &[d], dims, Init::Ones);
        Self { site: site.to_owned(), gamma, beta: None, eps }
    }

    /// Its place in policies and ledger.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// x (n, d) to (n, d).
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Var {
        match self.beta {
            Some(beta) => tape.layer_norm(&self.site, x, self.gamma, beta, self.eps),
            None => tape.rms_norm(&self.site, x, self.gamma, self.eps),
        }
    }
}
