//! From a GGUF file to a folder of Hugging Face's layout.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value as Json};

use super::blocks::Format;
use super::header::Stored;
use super::sizes::Sizes;
use super::tensors::{Order, Place, places};
use super::tokenizer::{TEMPLATE_FILE, TOKENIZER_CONFIG, tokenizer_file};
use super::value::Metadata;
use super::vocabulary::{Vocabulary, too_large};
use super::{Gguf, PIECE, Told, rope};
use crate::atomic::{replace_dir_atomic, write_atomic};
use crate::checkpoint::names::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::checkpoint::safetensors::{Data, Pieces, Saved, write};
use crate::checkpoint::save::copy;
use crate::checkpoint::weights::Dtype;
use crate::files::{first_ten, io_error, shape_text};
use crate::generation::GENERATION_CONFIG_FILE;

/// How a file is imported.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions<'a> {
    /// How numbers are written: `F32` or `BF16`. Without it f16 and bf16 stay as they are, and what has fewer bits becomes f32.
    pub dtype: Option<Dtype>,
    /// A folder whose tokenizer is taken in the place of the file's own.
    pub tokenizer: Option<&'a Path>,
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The model's `model_type`.
    pub architecture: &'static str,
    /// What the numbers come from.
    pub formats: Vec<(Format, usize)>,
    /// Numbers of all tensors.
    pub parameters: u64,
    /// How most numbers are written.
    pub dtype: Dtype,
}

/// The files of a tokenizer that travel.
const TOKENIZER_FILES: [&str; 7] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG_FILE,
    TEMPLATE_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
];

/// Writes the model of a GGUF file as the folder `out`, which is new or empty; it is written whole or not at all. `tell` hears how many numbers of how many
/// are written.
///
/// # Errors
/// A file that is no GGUF file of a model that is read here; a folder that holds something, or cannot be written.
pub fn import(file: &Path, out: &Path, wanted: ImportOptions<'_>, tell: &mut dyn FnMut(u64, u64)) -> Result<Imported> {
    check_empty(out)?;
    let gguf = Gguf::open(file)?;
    let sizes = Sizes::from_gguf(&gguf.header, divisors(&gguf)?.as_deref()).map_err(|e| e.at(file.display()))?;
    let places = found(&gguf, &sizes).map_err(|e| e.at(file.display()))?;
    let metadata = &gguf.header.metadata;
    let files = match wanted.tokenizer {
        None => Files::of_metadata(metadata, &sizes).map_err(|e| {
            e.at(file.display()).or_hint("bring the files of the original model's tokenizer: --tokenizer DIR")
        })?,
        Some(dir) => Files::of_folder(metadata, &sizes, dir)?,
    };
    let quantised = gguf.header.tensors.values().any(|stored| stored.format.is_quantised());
    let dtype = |stored: &Stored| match (wanted.dtype, stored.format) {
        (Some(dtype), _) => dtype,
        (None, Format::F16) if !quantised => Dtype::F16,
        (None, Format::BF16) if !quantised => Dtype::BF16,
        _ => Dtype::F32,
    };
    let most = dtype(&gguf.header.tensors["token_embd.weight"]);
    let parameters = places.iter().map(|(_, stored)| stored.elements() as u64).sum();
    let told = RefCell::new(Told { done: 0, of: parameters, tell });
    let read: Vec<_> =
        places.iter().map(|(place, stored)| Read { gguf: &gguf, stored, order: place.order, told: &told }).collect();
    let tensors: Vec<_> = (places.iter().zip(&read))
        .map(|((place, stored), read)| {
            let data = Data::Pieces { from: read, len: stored.elements(), dtype: dtype(stored) };
            Saved { name: place.key.clone(), shape: place.shape.clone(), data }
        })
        .collect();
    replace_dir_atomic(out, |new| {
        let mut config = sizes.to_json(dtype_name(most));
        config.extend(files.ids.clone());
        write_atomic(&new.join(CONFIG_FILE), pretty(&config.into()))?;
        if let Some(dir) = wanted.tokenizer {
            for name in TOKENIZER_FILES.into_iter().filter(|name| dir.join(name).exists()) {
                copy(name, dir, new, out)?;
            }
        }
        for (name, json) in files.own.iter().filter(|(name, _)| !new.join(name).exists()) {
            write_atomic(&new.join(name), pretty(json))?;
        }
        write(&new.join(WEIGHTS_FILE), &tensors, &[])
    })?;
    Ok(Imported { architecture: sizes.architecture.name(), formats: gguf.formats(), parameters, dtype: most })
}

/// Refuses a folder that holds something.
fn check_empty(out: &Path) -> Result<()> {
    let mut entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("cannot write the model folder", &e, out)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    Err(Error::usage("--out: expected a new or empty folder, found one that holds something")
        .at(out.display())
        .hint("choose another folder"))
}

fn pretty(json: &Json) -> String {
    serde_json::to_string_pretty(json).unwrap_or_default() + "\n"
}

/// As `torch_dtype` calls it.
fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The numbers of `rope_freqs.weight`.
fn divisors(gguf: &Gguf) -> Result<Option<Vec<f32>>> {
    let Some(stored) = gguf.header.tensors.get(rope::FACTORS) else { return Ok(None) };
    if stored.shape.len() != 1 || stored.elements() > PIECE {
        let found = shape_text(&stored.shape);
        return Err(Error::new(format!(
            "{}: expected one number for each frequency, found shape {found}",
            rope::FACTORS
        ))
        .at(gguf.path().display()));
    }
    let mut numbers = vec![0.0; stored.elements()];
    gguf.read(stored, 0, &mut numbers)?;
    Ok(Some(numbers))
}

/// The tensors of a decoder, each with its place in the file.
fn found<'a>(gguf: &'a Gguf, sizes: &Sizes) -> Result<Vec<(Place, &'a Stored)>> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for place in places(sizes) {
        match gguf.header.tensors.get(&place.gguf) {
            Some(stored) if stored.shape == place.shape => found.push((place, stored)),
            Some(stored) => {
                let (expected, found) = (shape_text(&place.shape), shape_text(&stored.shape));
                return Err(Error::new(format!("{}: expected shape {expected}, found {found}", place.gguf)));
            }
            None => missing.push(place.gguf),
        }
    }
    if !missing.is_empty() {
        return Err(Error::new(format!("tensors are missing: {}", first_ten(&missing))).hint(
            "is the file whole, or one of several that a model was split into? Join those by llama-gguf-split --merge",
        ));
    }
    let ours = |name: &str| name == rope::FACTORS || found.iter().any(|(place, _)| place.gguf == name);
    if found.len() + usize::from(gguf.header.tensors.contains_key(rope::FACTORS)) < gguf.header.tensors.len() {
        let others: Vec<_> = gguf.header.tensors.keys().filter(|name| !ours(name)).collect();
        let name = sizes.architecture.name();
        return Err(Error::new(format!("tensors that no model of type {name} has: {}", first_ten(&others))));
    }
    Ok(found)
}

/// The files beside the weights and `config.json`.
struct Files {
    own: Vec<(&'static str, Json)>,
    ids: Map<String, Json>,
}

impl Files {
    fn of_metadata(metadata: &Metadata, sizes: &Sizes) -> Result<Self> {
        let vocabulary = Vocabulary::from_metadata(metadata, sizes.vocab, sizes.architecture.name())?;
        let ids = vocabulary.ids();
        let mut own = vec![
            (TOKENIZER_FILE, vocabulary.tokenizer_json()),
            (TOKENIZER_CONFIG, vocabulary.tokenizer_config(sizes.context())),
        ];
        if !ids.is_empty() {
            own.push((GENERATION_CONFIG_FILE, ids.clone().into()));
        }
        Ok(Self { own, ids })
    }

    /// Of a tokenizer of another folder, checked against the embedding.
    fn of_folder(metadata: &Metadata, sizes: &Sizes, dir: &Path) -> Result<Self> {
        let (path, json) = tokenizer_file(dir)?;
        let vocab = json.get("model").and_then(|model| model.get("vocab")).and_then(Json::as_object);
        let ids = vocab.into_iter().flat_map(|vocab| vocab.values());
        let added = json.get("added_tokens").and_then(Json::as_array).into_iter().flatten();
        let largest = ids.chain(added.filter_map(|token| token.get("id"))).filter_map(Json::as_u64).max();
        if let Some(largest) = largest.filter(|&id| id >= sizes.vocab as u64) {
            return Err(too_large(largest as usize + 1, sizes.vocab).at(path.display()));
        }
        let mut ids = Map::new();
        for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            let id = metadata.count(&format!("tokenizer.ggml.{name}_token_id"))?;
            id.into_iter().for_each(|id| drop(ids.insert(key.to_string(), id.into())));
        }
        let own = if ids.is_empty() { Vec::new() } else { vec![(GENERATION_CONFIG_FILE, ids.clone().into())] };
        Ok(Self { own, ids })
    }
}

/// A tensor of a file, as safetensors has it.
struct Read<'a, 't> {
    gguf: &'a Gguf,
    stored: &'a Stored,
    order: Order,
    told: &'a RefCell<Told<'t>>,
}

impl fmt::Debug for Read<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read({:?})", self.stored)
    }
}

impl Pieces for Read<'_, '_> {
    fn pieces(&self, each: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()> {
        let len = self.stored.elements();
        let unit = self.order.unit(&self.stored.shape);
        let most = unit.unwrap_or(PIECE).min(len);
        let (mut piece, mut turned) = (vec![0.0; most], Vec::new());
        for first in (0..len).step_by(most) {
            let piece = &mut piece[..most.min(len - first)];
            self.gguf.read(self.stored, first, piece).map_err(|e| io::Error::other(e.to_string()))?;
            if unit.is_some() {
                self.order.to_halves(piece, &mut turned);
                each(&turned)?;
            } else {
                each(piece)?;
            }
            self.told.borrow_mut().more(piece.len());
        }
        Ok(())
    }
}
