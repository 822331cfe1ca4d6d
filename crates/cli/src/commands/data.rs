//! `colrow data`: a recipe's first examples as the model gets them.

use colrow_models::checkpoint::hub::Needs;
use colrow_tensor::Result;
use colrow_tensor::printable::printable;
use colrow_train::prepare;
use colrow_train::preview::Preview;

use super::RecipeArgs;
use crate::arguments::whole;
use crate::output::{self, write_out};
use crate::units;

/// Show a recipe's first training examples as the model gets them: their text, their tokens, and what of them counts in the loss.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// So many examples.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole(1..=1_000_000))]
    show: usize,
    /// Print a line of JSON for each.
    #[arg(long)]
    json: bool,
}

/// What is put around that which counts: colours on a terminal, else signs.
const COLOURS: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
const SIGNS: [&str; 2] = ["⟦", "⟧"];

pub(crate) fn run(args: &Args) -> Result<()> {
    let sources = prepare::sources(args.recipe.load()?, Needs::ConfigAndTokenizer)?;
    sources.warnings.iter().for_each(|w| output::warn(w));
    let examples = sources.preview(args.show)?;
    if args.json {
        return write_out(|out| {
            examples.iter().try_for_each(|example| {
                serde_json::to_writer(&mut *out, example)?;
                writeln!(out)
            })
        });
    }
    let around = if output::takes_colours() { COLOURS } else { SIGNS };
    let mut text: String = examples.iter().map(|example| shown(example, around)).collect();
    if sources.task.is_of_tokens() {
        let max_length = sources.recipe.data.max_length;
        let set = sources.objective.tokenise(&sources.tokeniser, &sources.train, None, max_length)?;
        set.warnings.iter().for_each(|w| output::warn(w));
        let labels = set.weight.iter().flatten().filter(|&&weight| weight > 0.0).count();
        let count = |n: usize| units::count(n as u64);
        let (n, tokens) = (set.len(), set.ids.len());
        text += &format!(
            "training data: {} examples, {} tokens, {} count in the loss\n",
            count(n),
            count(tokens),
            count(labels)
        );
    }
    write_out(|out| out.write_all(text.as_bytes()))
}

/// An example with a line above it.
fn shown(example: &Preview, [begin, end]: [&str; 2]) -> String {
    let mut head = format!("── {}: {} tokens", example.place, example.tokens);
    head += &example.labels.map_or(String::new(), |n| format!(", {n} count in the loss"));
    head += &example.label.as_ref().map_or(String::new(), |label| format!(", label {}", printable(label)));
    if example.dropped > 0 {
        head += &format!(", {} cut off", example.dropped);
    }
    let pieces = example.pieces.iter().map(|(text, counts)| match counts {
        true => format!("{begin}{}{end}", printable(text)),
        false => printable(text).into_owned(),
    });
    let text: String = pieces.collect();
    format!("{head}\n{}\n\n", text.trim_end_matches('\n'))
}
