//! `colrow merge`: an adapter into the weights of its base model.

use std::fs;
use std::path::PathBuf;

use colrow_models::checkpoint::names::ADAPTER_CONFIG_FILE;
use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::lora;
use colrow_models::{apart, atomic};
use colrow_tensor::{BaseWeights, Error, Precision, Result};

use crate::arguments::choice;
use crate::output::{print, say};
use crate::saved::{ModelArgs, Used};

/// Merge an adapter into its base model's weights, and write the model that results.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the adapter is added to: the numbers of the base model's checkpoint, or what they are in the codes that its run held them in.
    #[arg(long, value_name = "CODES", value_parser = choice::<BaseWeights>(), default_value = "f32")]
    onto: BaseWeights,
    /// Folder to write: a model in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write over the model that is in that folder.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.force && fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::usage("--out: expected a new or empty folder, found one that holds something")
            .at(args.out.display())
            .hint("choose another folder, or write over the model in it by --force"));
    }
    // before minutes of reading
    atomic::check_dir(&args.out)?;
    let Used { dir, usage, loaded } = args.model.load_onto(args.onto, Some(Precision::F32))?;
    if !dir.join(ADAPTER_CONFIG_FILE).exists() {
        return Err(Error::usage(format!("--model: expected an adapter, found no {ADAPTER_CONFIG_FILE}"))
            .at(dir.display())
            .hint("a whole model has nothing to merge, and is used as it is"));
    }
    for folder in &loaded.read_from {
        apart::check_folder(&args.out, "the adapter or its base model", folder)?;
    }
    // an adapter that says nothing may have been trained over anything
    if let Some(held) = usage.as_ref().map(|usage| usage.base).filter(|&held| held != args.onto) {
        let [onto, trained] = [args.onto, held].map(numbers);
        say(&format!(
            "note: merged onto {onto}; the adapter was trained over {trained}: --onto {held} merges onto those"
        ));
    }
    let mut model = loaded.model;
    if lora::merge(&mut model) {
        say(
            "note: the head's adapter is merged into a weight of the head's own; config.json now says tie_word_embeddings = false",
        );
    }
    let usage = usage.map(|usage| usage.of_merged().to_json());
    save_model_folder(&args.out, &model.config, &model.registry.saved(|_| true), &loaded.tokenizer_dir, usage)?;
    print(&format!("the model is in {}", args.out.display()))
}

/// What weights are, in words.
fn numbers(base: BaseWeights) -> String {
    match base {
        BaseWeights::F32 => "the checkpoint's weights as they are".to_owned(),
        codes => format!("the numbers that they are in {codes}"),
    }
}
