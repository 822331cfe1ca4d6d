//! Values of arguments: whole numbers of a range, what shells offer, and errors in the words of the command line.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use colrow_tensor::{Error, Named};
use colrow_train::recipe;
use colrow_train::tasks::Task;

/// Most tokens of a sequence that an argument asks for.
pub(crate) const MOST_LENGTH: u64 = 1 << 20;

/// A whole number of a range, as an argument's value.
pub(crate) fn whole(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = usize> {
    StringValueParser::new().try_map(move |text| {
        let value = text.parse().ok().filter(|n| range.contains(n)).and_then(|n| usize::try_from(n).ok());
        value.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
    })
}

/// The names of a recipe's choice, as values of an argument.
pub(crate) fn choice<T: Named + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(T::ALL.iter().map(|c| c.name()));
    names.try_map(|name| T::find(&name).ok_or("no such name"))
}

/// Any text, of which shells offer some.
#[derive(Clone)]
pub(crate) struct Offering(fn() -> Vec<&'static str>);

/// As an argument's value any text, of which shells offer those of `list`.
pub(crate) fn offering(list: fn() -> Vec<&'static str>) -> Offering {
    Offering(list)
}

impl TypedValueParser for Offering {
    type Value = String;

    fn parse_ref(&self, cmd: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}

/// The keys of a recipe as `--set` takes them.
pub(crate) fn keys() -> Vec<&'static str> {
    static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| recipe::keys().into_iter().map(|key| key + "=").collect());
    KEYS.iter().map(String::as_str).collect()
}

/// The tasks by name; others spell them otherwise, `SST-2`.
pub(crate) fn tasks() -> Vec<&'static str> {
    Task::ALL.map(Task::name).into()
}

/// The recipe's words in an error, as arguments: commands without a recipe speak of those.
pub(crate) fn in_arguments(e: Error) -> Error {
    const WORDS: [(&str, &str); 10] = [
        ("name the columns in the recipe: ", "name the columns: "),
        ("the recipe's data.", "data."),
        ("the recipe gives data.text", "there is --text"),
        ("without data.pair", "without --pair"),
        ("data.text", "--text"),
        ("data.pair", "--pair"),
        ("data.label", "--label"),
        ("data.max_length", "--max-length"),
        ("task = \"regress\"", "--task regress"),
        ("task = \"classify\"", "--task classify"),
    ];
    e.reworded(|text| WORDS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)))
}
