//! What two recipes differ in, key by key.

use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

use super::Recipe;

/// A key that has another value in one recipe than in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path, such as `optim.lr`.
    pub key: String,
    /// Its value there, as a recipe writes it; `None` if it is not set.
    pub there: Option<String>,
    /// Its value here.
    pub here: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        write!(f, "{}: {} there, {} here", self.key, value(&self.there), value(&self.here))
    }
}

impl Recipe {
    /// The keys in which this recipe, that is here, differs from the one `there`.
    pub fn differences(&self, there: &Self) -> Vec<Difference> {
        let (here_values, there_values) = (values(self), values(there));
        let mut keys: Vec<_> = there_values.keys().chain(here_values.keys()).collect();
        keys.sort();
        keys.dedup();
        let difference = |key: &String| Difference {
            key: key.clone(),
            there: there_values.get(key).cloned(),
            here: here_values.get(key).cloned(),
        };
        let mut all: Vec<_> = keys.into_iter().map(difference).filter(|d| d.there != d.here).collect();
        if all.is_empty() && self != there {
            // the first pattern that matches counts
            let order = |recipe: &Self| {
                let patterns = recipe.keep.sites.iter().map(|site| format!("{:?}", site.pattern));
                Some(format!("the order {}", patterns.collect::<Vec<_>>().join(", ")))
            };
            all.push(Difference { key: "keep.sites".into(), there: order(there), here: order(self) });
        }
        all
    }
}

/// Every value of a recipe by its key's path.
fn values(recipe: &Recipe) -> BTreeMap<String, String> {
    fn walk(table: &Table, prefix: &str, out: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let path = if bare { format!("{prefix}{key}") } else { format!("{prefix}{key:?}") };
            match value {
                Value::Table(inner) if !inner.is_empty() => walk(inner, &format!("{path}."), out),
                value => drop(out.insert(path, value.to_string())),
            }
        }
    }
    let mut out = BTreeMap::new();
    let table = Table::try_from(recipe).expect("a recipe is a table of strings, numbers, lists and tables");
    walk(&table, "", &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(there: &str, here: &str) -> Vec<String> {
        let parse = |text| Recipe::parse(text, "test", &[]).unwrap();
        parse(here).differences(&parse(there)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_key_is_told_with_both_values() {
        let there = "model.path = 'm'\ntrain.steps = 5\nkeep.sites.'a.*' = { ratio = 0.5 }";
        let here = "model.path = 'n'\ndata.limit = 3\nkeep.sites.'a.*' = { ratio = 0.25 }";
        let told = [
            "data.limit: not set there, 3 here",
            r#"keep.sites."a.*".ratio: 0.5 there, 0.25 here"#,
            r#"model.path: "m" there, "n" here"#,
            "train.steps: 5 there, not set here",
        ];
        assert_eq!(differences(there, here), told);
        assert_eq!(differences(there, there), [""; 0]);
    }

    #[test]
    fn the_order_of_patterns_counts() {
        let sites = |first: &str, second: &str| {
            format!("model.path = 'm'\n[keep.sites]\n'{first}' = {{ ratio = 0.5 }}\n'{second}' = {{ ratio = 0.5 }}")
        };
        let told = differences(&sites("a", "b"), &sites("b", "a"));
        assert_eq!(told, [r#"keep.sites: the order "a", "b" there, the order "b", "a" here"#]);
    }
}
