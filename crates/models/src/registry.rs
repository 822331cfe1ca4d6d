//! The parameters of a model, tied to the keys of its checkpoint.

use std::collections::HashMap;
use std::ops::Range;

use colrow_autograd::{ParamId, Params};
use colrow_tensor::rng::Key;
use colrow_tensor::{BaseWeights, DType, Device, Error, Format, Result, TrainedWeights, Weight};
use rayon::prelude::*;

use crate::checkpoint::safetensors::{Data, Saved};
use crate::checkpoint::weights::{Dtype, Weights};

/// The key of `config.json` for the dimension that depends on the task.
pub const NUM_LABELS: &str = "num_labels";

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
    /// Its elements in the parameter.
    pub fn range(&self) -> Range<usize> {
        let start = self.first * self.shape[1..].iter().product::<usize>();
        start..start + self.shape.iter().product::<usize>()
    }
}

/// A tensor that is stacked with others.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its Hugging Face key.
    pub key: String,
    /// Its rows.
    pub rows: usize,
    /// For each axis the key of `config.json` that sets its length.
    pub dims: &'static [&'static str],
    /// What it is without a checkpoint.
    pub init: Init,
}

/// Parameters and the checkpoint keys that they go by.
#[derive(Debug)]
pub struct Registry {
    /// The parameters.
    pub params: Params,
    /// The checkpoint's tensors, in the order of the model.
    pub entries: Vec<Entry>,
    /// Where what is frozen in codes was read from.
    pub(crate) origin: Option<Origin>,
}

/// A checkpoint, and its names of entries' keys.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) weights: Weights,
    pub(crate) names: HashMap<String, String>,
}

impl Registry {
    /// An empty registry.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { params: Params::new(device, dtype), entries: Vec::new(), origin: None }
    }

    /// A parameter that is one tensor of the checkpoint. Matrices decay, vectors do not.
    pub fn add(&mut self, key: &str, shape: &[usize], dims: &'static [&'static str], init: Init) -> ParamId {
        self.add_stacked(&[Part { key: key.to_owned(), rows: shape[0], dims, init }], &shape[1..])
    }

    /// A parameter that stacks several tensors of the checkpoint by rows: each has its own number of them, and all have the shape `row`.
    pub fn add_stacked(&mut self, parts: &[Part], row: &[usize]) -> ParamId {
        let shape = |rows: usize| [&[rows], row].concat();
        let names: Vec<_> = parts.iter().map(|part| part.key.as_str()).collect();
        let rows = parts.iter().map(|part| part.rows).sum();
        let param = self.params.add(names.join(" + "), &shape(rows), !row.is_empty());
        let mut first = 0;
        for Part { key, rows, dims, init } in parts {
            self.entries.push(Entry { key: key.clone(), shape: shape(*rows), dims, param, first, init: *init });
            first += rows;
        }
        param
    }

    /// A parameter with the numbers of the matrix `of`, which is one tensor of the checkpoint.
    pub(crate) fn add_copy(&mut self, key: &str, of: ParamId) -> ParamId {
        let shape = self.params[of].value.shape();
        let (dims, init) = (&[][..], Init::Zeros);
        let copy = self.add(key, &shape, dims, init);
        let from = self.params[of].value.dense().clone();
        from.device().kernels().copy(&from, self.params[copy].value.dense_mut());
        copy
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
        let mut writer = value.writer(range.start);
        weights.read_parts(name, range.len(), |_, part| writer.push(part))
    }

    /// Writes the numbers of entry `i` piece by piece: `numbers` gets the number of a piece's first element, and the piece.
    pub(crate) fn write(&mut self, i: usize, mut numbers: impl FnMut(usize, &mut [f32])) {
        let Entry { param, .. } = self.entries[i];
        let range = self.entries[i].range();
        let value = &mut self.params[param].value;
        if value.device().is_meta() {
            return;
        }
        let mut writer = value.writer(range.start);
        let mut piece = vec![0.0; PIECE.min(range.len())];
        for first in (0..range.len()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(range.len() - first)];
            numbers(first, piece);
            writer.push(piece);
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
    pub(crate) fn edit_rows(&mut self, param: ParamId, rows: Range<usize>, mut edit: impl FnMut(usize, &mut [f32])) {
        let value = self.params[param].value.dense_mut();
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

    /// The tensors of the entries that are `chosen`, as a checkpoint stores them: in bf16 what is trained in it, the others in f32.
    pub fn saved(&self, chosen: impl Fn(&Entry) -> bool) -> Vec<Saved<'_>> {
        let saved =
            |entry: &Entry| Saved { name: entry.key.clone(), shape: entry.shape.clone(), data: self.data(entry) };
        self.entries.iter().filter(|e| chosen(e)).map(saved).collect()
    }

    /// The numbers of an entry. Those of what is frozen in codes are the checkpoint's own; where it has none, those of the codes.
    fn data(&self, entry: &Entry) -> Data<'_> {
        let (range, param) = (entry.range(), &self.params[entry.param]);
        let coded = |of, dtype| Data::Coded { of, first: entry.first, len: range.len(), dtype };
        match (&param.value, &self.origin) {
            (Weight::Dense(of), _) => Data::On { of, first: range.start, len: range.len() },
            (Weight::Coded(of), _) if param.trainable => coded(of, Dtype::BF16),
            (Weight::Coded(of), Some(Origin { weights, names })) => match names.get(&entry.key) {
                Some(name) => Data::Stored { weights, name, len: range.len() },
                None => coded(of, Dtype::F32),
            },
            (Weight::Coded(of), None) => coded(of, Dtype::F32),
        }
    }

    /// Holds every matrix that is frozen in codes, if `base` has any. Whether there is one.
    pub fn hold_frozen(&mut self, base: BaseWeights) -> bool {
        self.hold(base.format(), false)
    }

    /// Holds every matrix that is trained as `weights` says; adapters stay as they are. Whether there is one in codes.
    pub fn hold_trained(&mut self, weights: TrainedWeights) -> bool {
        self.hold(weights.format(), true)
    }

    fn hold(&mut self, format: Option<Format>, trainable: bool) -> bool {
        let Some(format) = format else { return false };
        let mut any = false;
        for (_, param) in self.params.iter_mut().filter(|(_, p)| p.matrix && p.trainable == trainable) {
            if let Weight::Dense(_) = param.value {
                param.value = param.value.coded(format);
            }
            any = true;
        }
        any
    }

    /// Gives every matrix the numbers that its codes mean, if `base` has any.
    pub(crate) fn round_to(&mut self, base: BaseWeights) {
        let Some(format) = base.format() else { return };
        for (_, param) in self.params.iter_mut().filter(|(_, p)| p.matrix) {
            let Weight::Coded(coded) = param.value.coded(format) else { continue };
            let dense = param.value.dense_mut();
            if dense.device().is_meta() {
                continue;
            }
            let most = (PIECE / coded.cols.max(1)).max(1);
            let mut piece = vec![0.0; most.min(dense.rows()) * coded.cols];
            for first in (0..dense.rows()).step_by(most) {
                let piece = &mut piece[..most.min(dense.rows() - first) * coded.cols];
                coded.read_rows(first, piece);
                dense.write_range(first * coded.cols, piece);
            }
        }
    }

    /// Whether anything that is frozen is held in codes.
    pub fn holds_frozen_codes(&self) -> bool {
        self.params.iter().any(|(_, p)| !p.trainable && matches!(p.value, Weight::Coded(_)))
    }

    /// Whether an entry is learned.
    pub fn is_trainable(&self, entry: &Entry) -> bool {
        self.params[entry.param].trainable
    }

    /// Freezes the parameters whose every key satisfies `frozen`.
    ///
    /// # Errors
    /// A parameter that is frozen in part: stacked tensors are learned together.
    pub fn freeze(&mut self, frozen: impl Fn(&str) -> bool) -> Result<()> {
        let Self { params, entries, .. } = self;
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

/// Elements that are written at once.
const PIECE: usize = 1 << 18;

/// Numbers `first..` of a stream.
fn draw(first: usize, out: &mut [f32], number: impl Fn(u64) -> f64 + Sync) {
    out.par_iter_mut().with_min_len(4096).enumerate().for_each(|(i, x)| *x = number((first + i) as u64) as f32);
}
