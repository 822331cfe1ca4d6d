//! Labels of texts by a fine-tuned classifier, a whole model or an adapter:
//!
//!     cargo run --release --example predict -- runs/quickstart/exact/model "a fine film" "a poor plot"

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use colrow_autograd::{Mode, Tape};
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::names::ADAPTER_CONFIG_FILE;
use colrow_models::config::Config;
use colrow_models::families::FAMILIES;
use colrow_tensor::{DType, Device, Result};
use colrow_train::data::{Batch, Example, Examples, Tokeniser};
use colrow_train::metrics::{argmax, softmax};
use colrow_train::usage::Usage;

/// A text's logits, by label, and the label.
pub(crate) struct Prediction {
    pub(crate) logits: Vec<f32>,
    pub(crate) label: String,
}

pub(crate) fn predict(folder: &Path, texts: &[String]) -> Result<Vec<Prediction>> {
    // what the model's run was told; a folder of another program does not say it
    let usage = Usage::open(folder)?;
    let max_length = usage.as_ref().map_or(128, |usage| usage.max_length);
    let device = Device::cpu_with(usage.as_ref().map(|usage| usage.precision).unwrap_or_default());

    let loaded = if folder.join(ADAPTER_CONFIG_FILE).exists() {
        let relabel = |config: &mut Config| usage.iter().for_each(|usage| usage.relabel(config));
        load::adapted(folder, None, FAMILIES, relabel, &device, DType::F32)?
    } else {
        load::model(folder, Config::open(folder)?, &device, DType::F32, 0, Anew::default())?
    };
    loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let model = loaded.model;

    // a batch is ragged: the tokens of all texts end to end
    let tokeniser = Tokeniser::load(&loaded.tokenizer_dir, &model.config)?;
    let rows = texts.iter().map(|text| Example { text: text.clone(), ..Example::default() }).collect();
    let set = tokeniser.tokenise(&Examples::new(rows), None, max_length)?;
    let all: Vec<u32> = (0..set.len() as u32).collect();
    let batch = Batch::of(&set, &all);

    // without a gradient in mind nothing is recorded
    let mut tape = Tape::new(&model.registry.params, Mode::Inference);
    let logits = model.logits(&mut tape, &batch.tokens)?.value.to_vec::<f32>();
    let of_text = |row: &[f32]| {
        let label = model.config.labels[argmax(row) as usize].clone();
        Prediction { logits: row.to_vec(), label }
    };
    Ok(logits.chunks(model.config.num_labels()).map(of_text).collect())
}

pub(crate) fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (folder, texts) = (arguments.next().map(PathBuf::from), arguments.collect::<Vec<_>>());
    let Some(folder) = folder.filter(|_| !texts.is_empty()) else {
        eprintln!("usage: predict MODEL_FOLDER TEXT…");
        return ExitCode::from(2);
    };
    match predict(&folder, &texts) {
        Ok(predictions) => {
            for (text, Prediction { logits, label }) in texts.iter().zip(predictions) {
                println!("{label}  {:?}  {text}", softmax(&logits));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
