//! Runs that differ in nothing but their seed, as one: means and deviations.

use super::load::Run;

/// Runs of one recipe.
pub(crate) struct Group<'a> {
    /// The runs' name, without what tells them apart.
    pub(crate) name: String,
    /// The runs, at least one.
    pub(crate) runs: Vec<&'a Run>,
}

/// A mean and the standard deviation (n − 1), which one value does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) deviation: Option<f64>,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = |x: &f64| (x - mean).powi(2);
        let deviation = (values.len() > 1).then(|| (values.iter().map(square).sum::<f64>() / (n - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, deviation })
    }
}

/// The runs by recipe, in the order of their first.
pub(crate) fn groups(runs: &[Run]) -> Vec<Group<'_>> {
    let mut groups: Vec<(Option<String>, Group<'_>)> = Vec::new();
    for run in runs {
        let key = run.recipe.as_deref().map(without_seed);
        match groups.iter_mut().find(|(other, _)| key.is_some() && *other == key) {
            Some((_, group)) => {
                group.name = shared(&group.name, &run.name);
                group.runs.push(run);
            }
            None => groups.push((key, Group { name: run.name.clone(), runs: vec![run] })),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

impl Group<'_> {
    /// Pairs of its runs that have the same seed too.
    pub(crate) fn of_one_seed(&self) -> Vec<[&Run; 2]> {
        let seed =
            |run: &Run| run.recipe.as_deref()?.lines().find(|line| line.starts_with("seed =")).map(str::to_owned);
        let same = |(i, run): (usize, &&'_ Run)| {
            let first = self.runs[..i].iter().find(|other| seed(other).is_some() && seed(other) == seed(run))?;
            Some([*first, self.runs[i]])
        };
        self.runs.iter().enumerate().filter_map(same).collect()
    }

    /// What its runs have of a figure.
    pub(crate) fn spread(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.runs.iter().filter_map(|run| value(run)).collect::<Vec<_>>())
    }
}

fn without_seed(recipe: &str) -> String {
    let other = |line: &&str| !line.starts_with("seed =") && !line.starts_with("output =");
    recipe.lines().filter(other).collect::<Vec<_>>().join("\n")
}

/// The common beginning of two names, without what joins a number to it.
fn shared(a: &str, b: &str) -> String {
    let same: String = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let trimmed = same.trim_end_matches(|c: char| "-_. ".contains(c));
    if trimmed.is_empty() { a.to_owned() } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn runs_that_differ_in_their_seed_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, recipe: &str| {
            let dir = folder.path().join(name);
            sample::write_run(&dir, name, 0, 1.0);
            Run { recipe: Some(recipe.into()), ..Run::load(&dir).unwrap() }
        };
        let runs = [
            run("pps-0", "seed = 0\noutput = \"a\"\nx = 1"),
            run("exact-0", "seed = 0\noutput = \"b\"\nx = 2"),
            run("pps-1", "seed = 1\noutput = \"c\"\nx = 1"),
        ];
        let groups = groups(&runs);
        let names: Vec<_> = groups.iter().map(|g| (g.name.as_str(), g.runs.len())).collect();
        assert_eq!(names, [("pps", 2), ("exact-0", 1)]);
    }

    #[test]
    fn spreads_by_hand() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { mean: 3.0, deviation: None }));
        assert_eq!(Spread::of(&[1.0, 3.0, 5.0]), Some(Spread { mean: 3.0, deviation: Some(2.0) }));
    }
}
