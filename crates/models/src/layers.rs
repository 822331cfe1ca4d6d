//! Layers that model families share, and the registry that ties their parameters to checkpoint keys.

use colrow_autograd::{LowRank, ParamId, Params, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Result, Tensor};
use rayon::prelude::*;

use crate::weights::{Data, Saved, Weights};

/// How a parameter is initialised where the checkpoint has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros: biases.
    Zeros,
    /// All ones: norms.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

/// A tensor of the checkpoint: rows `first..first + shape[0]` of a parameter.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its Hugging Face key.
    pub key: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// For each axis the key of `config.json` that sets its length.
    pub dims: &'static [&'static str],
    /// The parameter that holds it.
    pub param: ParamId,
    /// Its first row in the parameter.
    pub first: usize,
    /// What it is without a checkpoint.
    pub init: Init,
}

impl Entry {
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.first * self.shape[1..].iter().product::<usize>();
        start..start + self.shape.iter().product::<usize>()
    }
}

/// Parameters and the checkpoint keys that they go by.
#[derive(Debug)]
pub struct Registry {
    /// The parameters.
    pub params: Params,
    /// The checkpoint's tensors, in the order of the model.
    pub entries: Vec<Entry>,
}

impl Registry {
    /// An empty registry.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { params: Params::new(device, dtype), entries: Vec::new() }
    }

    /// A parameter that stacks the tensors `keys`, all of `shape`, by rows. Matrices decay, vectors do not.
    pub fn add(&mut self, keys: &[String], shape: &[usize], dims: &'static [&'static str], init: Init) -> ParamId {
        let keys: Vec<_> = keys.iter().map(|key| (key.clone(), init)).collect();
        self.add_stacked(&keys, shape, dims)
    }

    /// As [`Registry::add`], each tensor with its own initialisation.
    fn add_stacked(&mut self, keys: &[(String, Init)], shape: &[usize], dims: &'static [&'static str]) -> ParamId {
        let mut stacked = shape.to_vec();
        stacked[0] *= keys.len();
        let names: Vec<_> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let param = self.params.add(names.join(" + "), &stacked, shape.len() > 1);
        for (i, (key, init)) in keys.iter().enumerate() {
            let (key, shape, first, init) = (key.clone(), shape.to_vec(), i * shape[0], *init);
            self.entries.push(Entry { key, shape, dims, param, first, init });
        }
        param
    }

    /// Reads entry `i` from the checkpoint's tensor `name`.
    ///
    /// # Errors
    /// Those of [`Weights::read`].
    pub fn read(&mut self, i: usize, weights: &Weights, name: &str) -> Result<()> {
        let Entry { param, .. } = self.entries[i];
        let range = self.entries[i].range();
        let value = &mut self.params[param].value;
        if value.device().is_meta() {
            return Ok(());
        }
        weights.read_parts(name, range.len(), |first, part| write(value, range.start + first, part))
    }

    /// Writes the numbers of entry `i` part by part: `numbers` gets the number of a part's first element, and the part.
    pub(crate) fn write(&mut self, i: usize, mut numbers: impl FnMut(usize, &mut [f32])) {
        let Entry { param, .. } = self.entries[i];
        let range = self.entries[i].range();
        let value = &mut self.params[param].value;
        if value.device().is_meta() {
            return;
        }
        let mut part = vec![0.0; PART.min(range.len())];
        for first in (0..range.len()).step_by(PART) {
            let part = &mut part[..PART.min(range.len() - first)];
            numbers(first, part);
            write(value, range.start + first, part);
        }
    }

    /// Initialises entry `i` from the stream `key`.
    pub fn init(&mut self, i: usize, key: Key) {
        let entry = &self.entries[i];
        let (key, init) = (key.named(&entry.key), entry.init);
        self.write(i, |first, out| match init {
            Init::Zeros => out.fill(0.0),
            Init::Ones => out.fill(1.0),
            Init::Normal(std) => draw(first, out, |i| std * key.normal(i)),
            Init::Uniform(bound) => draw(first, out, |i| bound * (2.0 * key.uniform(i) - 1.0)),
        });
    }

    /// Changes rows of a parameter, one by one: `edit` gets a row's number in the range, and the row.
    pub(crate) fn edit_rows(
        &mut self,
        param: ParamId,
        rows: std::ops::Range<usize>,
        mut edit: impl FnMut(usize, &mut [f32]),
    ) {
        let value = &mut self.params[param].value;
        if value.device().is_meta() {
            return;
        }
        let columns = value.cols();
        let mut row = vec![0.0; columns];
        for (i, at) in rows.enumerate() {
            value.read_range(at * columns, &mut row);
            edit(i, &mut row);
            value.write_range(at * columns, &row);
        }
    }

    /// The f32 tensors of the entries that are `chosen`, as a checkpoint stores them.
    pub fn saved(&self, chosen: impl Fn(&Entry) -> bool) -> Vec<Saved<'_>> {
        let saved = |entry: &Entry| Saved {
            name: entry.key.clone(),
            shape: entry.shape.clone(),
            data: Data::On {
                of: &self.params[entry.param].value,
                first: entry.range().start,
                len: entry.range().len(),
            },
        };
        self.entries.iter().filter(|e| chosen(e)).map(saved).collect()
    }

    /// Whether an entry is learned.
    pub fn is_trainable(&self, entry: &Entry) -> bool {
        self.params[entry.param].trainable
    }

    /// The part of a tensor shaped like a parameter (its gradient, say) that belongs to entry `i`.
    pub fn part(&self, i: usize, of: &Tensor) -> Vec<f64> {
        of.to_f64()[self.entries[i].range()].to_vec()
    }

    /// Freezes the parameters whose every key satisfies `frozen`.
    ///
    /// # Errors
    /// A parameter that is frozen in part: stacked tensors are learned together.
    pub fn freeze(&mut self, frozen: impl Fn(&str) -> bool) -> Result<()> {
        let Self { params, entries } = self;
        let mut keys = vec![Vec::new(); params.len()];
        entries.iter().for_each(|e| keys[e.param.index()].push(e.key.as_str()));
        for ((_, param), keys) in params.iter_mut().zip(keys) {
            let count = keys.iter().filter(|k| frozen(k)).count();
            if count > 0 && count < keys.len() {
                return Err(Error::usage(format!(
                    "`freeze` names a part of {}, which are one weight here",
                    keys.join(", ")
                ))
                .hint("freeze all of them or none"));
            }
            param.trainable = count == 0;
        }
        Ok(())
    }
}

/// Elements of a part.
const PART: usize = 1 << 18;

/// Writes numbers to a float tensor, from an element on.
fn write(value: &mut Tensor, first: usize, numbers: &[f32]) {
    match value.dtype() {
        DType::F64 => value.write_range(first, &numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
        _ => value.write_range(first, numbers),
    }
}

/// Numbers `first..` of a stream.
fn draw(first: usize, out: &mut [f32], number: impl Fn(u64) -> f64 + Sync) {
    out.par_iter_mut().with_min_len(4096).enumerate().for_each(|(i, x)| *x = number((first + i) as u64) as f32);
}

/// `y = x·Wᵀ + b`, or without b, and what adapters add to it.
#[derive(Clone, Debug)]
pub struct Dense {
    site: String,
    weight: ParamId,
    bias: Option<ParamId>,
    modules: Vec<String>,
    size: [usize; 2],
    adapter: Option<LowRank>,
}

/// Sizes of a dense layer and the keys of `config.json` that set them, output first as in the weight.
#[derive(Clone, Copy, Debug)]
pub struct DenseSize {
    /// Outputs, inputs.
    pub size: [usize; 2],
    /// Their keys.
    pub dims: &'static [&'static str; 2],
}

impl Dense {
    /// The dense layer at `site`: the tensors of `modules` (names without `.weight`, `.bias`; standard deviations of new weights), each of
    /// `size`, stacked.
    pub fn new(
        registry: &mut Registry,
        site: &str,
        modules: &[(&str, f64)],
        DenseSize { size, dims }: DenseSize,
        bias: bool,
    ) -> Self {
        let weights: Vec<_> = modules.iter().map(|(m, std)| (format!("{m}.weight"), Init::Normal(*std))).collect();
        let biases: Vec<_> = modules.iter().map(|(m, _)| (format!("{m}.bias"), Init::Zeros)).collect();
        let weight = registry.add_stacked(&weights, &size, dims);
        let bias = bias.then(|| registry.add_stacked(&biases, &size[..1], &dims[..1]));
        let modules = modules.iter().map(|&(m, _)| m.to_owned()).collect();
        Self { site: site.to_owned(), weight, bias, modules, size, adapter: None }
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

    /// The checkpoint's modules that are stacked here.
    pub(crate) fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Outputs and inputs of one of them.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
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

/// Layer norm with scale and shift, or root mean square norm with a scale.
#[derive(Clone, Debug)]
pub struct Norm {
    site: String,
    gamma: ParamId,
    beta: Option<ParamId>,
    eps: f64,
}

impl Norm {
    /// The layer norm at `site` over `d` columns, its tensors under `prefix` + `site`.
    pub fn new(registry: &mut Registry, prefix: &str, site: &str, d: usize, eps: f64) -> Self {
        let key = |kind: &str| [format!("{prefix}{site}.{kind}")];
        let gamma = registry.add(&key("weight"), &[d], &["hidden_size"], Init::Ones);
        let beta = Some(registry.add(&key("bias"), &[d], &["hidden_size"], Init::Zeros));
        Self { site: site.to_owned(), gamma, beta, eps }
    }

    /// The root mean square norm at `site` over `d` columns.
    pub fn rms(registry: &mut Registry, site: &str, d: usize, eps: f64) -> Self {
        let gamma = registry.add(&[format!("{site}.weight")], &[d], &["d_model"], Init::Ones);
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
