#![no_main]
use colrow_train::recipe::Recipe;
use libfuzzer_sys::fuzz_target;

/// A line that begins so ends the file; what follows up to the next one is the `KEY=VALUE` of an argument.
const SET: &str = "\n--set ";

fuzz_target!(|text: &str| {
    let mut parts = text.split(SET);
    let file = parts.next().unwrap_or_default();
    let sets: Vec<String> = parts.map(str::to_string).collect();
    if let Ok(recipe) = Recipe::parse(file, "fuzz", &sets) {
        let written = recipe.to_toml();
        let again = Recipe::parse(&written, "written", &[]).unwrap_or_else(|e| panic!("{e}\n{written}"));
        assert_eq!(again, recipe, "{written}");
    }
});
