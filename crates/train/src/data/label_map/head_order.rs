//! The label map in the order of a checkpoint's head, whose rows stay with their names.

use super::super::Examples;
use super::super::classes::{Classes, is_unnamed, listed};
use super::LabelMap;
use crate::tasks::Task;

impl LabelMap {
    /// The same classes in the order of a checkpoint's head, whose output `i` is called `head[i]`: each row of it stays with its name.
    /// A head of as many other names keeps its rows and takes these.
    #[must_use]
    pub fn in_order_of(self, task: Task, head: &[String], train: &Examples) -> Self {
        let LabelMap::Names(mut classes) = self else { return self };
        if head.len() != classes.names.len() || is_unnamed(head) || head == classes.names {
            return LabelMap::Names(classes);
        }
        let others = Classes::new(head.to_vec());
        if task.labels().is_some() {
            let LabelMap::Names(mut of_head) = Self::of_model(task, head.to_vec()) else { return LabelMap::Value };
            if of_head.by_index.iter().all(Option::is_some)
                && of_head.names.len() == of_head.by_index.len()
                && of_head.notes.is_empty()
            {
                of_head.notes = classes.notes;
                return LabelMap::Names(of_head);
            }
            classes.notes.push(renamed(head, &classes.names));
            return LabelMap::Names(classes);
        }
        let mut places: Vec<Option<String>> = vec![None; head.len()];
        let mut rest = classes.names.clone();
        for find in [Classes::exact as fn(&Classes, &str) -> Option<u32>, Classes::find] {
            rest.retain(|name| match find(&others, name).map(|i| i as usize) {
                Some(i) if places[i].is_none() => {
                    places[i] = Some(name.clone());
                    false
                }
                _ => true,
            });
        }
        if rest.len() == head.len() {
            classes.notes.push(renamed(head, &classes.names));
            return LabelMap::Names(classes);
        }
        let mut rest = rest.into_iter();
        let names: Vec<String> = places.into_iter().filter_map(|place| place.or_else(|| rest.next())).collect();
        let mut ordered = Classes { notes: classes.notes, ..Classes::new(names) };
        if ordered.names != head {
            ordered.notes.push(renamed(head, &ordered.names));
        }
        if !train.classes.is_empty() {
            // an index in another file of this data is the data's
            ordered.by_index = train.classes.iter().map(|name| ordered.exact(name)).collect();
            ordered.indices_are_told = true;
        }
        LabelMap::Names(ordered)
    }
}

fn renamed(from: &[String], to: &[String]) -> String {
    format!("the labels of the checkpoint's head, {}, become {}, in this order", listed(from), listed(to))
}

#[cfg(test)]
mod tests {
    use super::super::super::Labels;
    use super::super::tests::{examples, words};
    use super::*;

    #[test]
    fn a_heads_rows_stay_with_their_names() {
        let train = examples(&["a", "b", "c"]);
        let of = |head: &[&str]| {
            LabelMap::of(Task::Classify, &train).unwrap().in_order_of(Task::Classify, &words(head), &train)
        };
        let told = |head: &[&str]| of(head).warnings(&train).join("\n");
        assert_eq!(of(&["c", "a", "b"]).names(), ["c", "a", "b"]);
        assert_eq!(of(&["c", "a", "b"]).resolve(&train).unwrap(), Labels::Class(vec![1, 2, 0]));
        assert_eq!(told(&["c", "a", "b"]), "");
        // by case, with a word; the data's writing stays
        assert_eq!(of(&["C", "a", "B"]).names(), ["c", "a", "b"]);
        assert!(told(&["C", "a", "B"]).contains("C, a, B, become c, a, b, in this order"));
        assert_eq!(of(&["c", "x", "a"]).names(), ["c", "b", "a"]);
        assert!(told(&["c", "x", "a"]).contains("c, x, a, become c, b, a"));
        assert_eq!(of(&["x", "y", "z"]).names(), ["a", "b", "c"]);
        assert!(told(&["x", "y", "z"]).contains("x, y, z, become a, b, c"));
        for other in [&["LABEL_0", "LABEL_1", "LABEL_2"][..], &["0", "1", "2"], &["b", "a"]] {
            assert_eq!((of(other).names().join(" "), told(other)), ("a b c".into(), String::new()));
        }
        // an index stays that of the file's own names
        let named = Examples { classes: words(&["a", "b", "c"]), ..examples(&["a", "b", "c"]) };
        let map =
            LabelMap::of(Task::Classify, &named).unwrap().in_order_of(Task::Classify, &words(&["c", "a", "b"]), &named);
        assert_eq!(map.resolve(&examples(&["0", "1", "2"])).unwrap(), Labels::Class(vec![1, 2, 0]));
    }

    #[test]
    fn a_tasks_head_keeps_its_names() {
        let train = examples(&["0", "1", "2"]);
        let of = |task, head: &[&str]| LabelMap::of(task, &train).unwrap().in_order_of(task, &words(head), &train);
        let map = of(Task::Mnli, &["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]);
        assert_eq!(map.names(), ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]);
        assert_eq!(map.resolve(&train).unwrap(), Labels::Class(vec![2, 1, 0]));
        assert_eq!(
            of(Task::Mnli, &["LABEL_0", "LABEL_1", "LABEL_2"]).names(),
            ["entailment", "neutral", "contradiction"]
        );
        assert_eq!(of(Task::Sst2, &["positive", "negative"]).class("1"), Some(0));
        let other = of(Task::Mnli, &["x", "y", "z"]);
        assert_eq!(other.names(), ["entailment", "neutral", "contradiction"]);
        assert!(other.warnings(&train)[0].contains("x, y, z, become entailment, neutral, contradiction"));
        assert_eq!(of(Task::Stsb, &["LABEL_0"]), LabelMap::Value);
    }

    #[test]
    fn many_labels_take_no_longer_each() {
        let labels: Vec<String> = (0..200_000).map(|i| format!("label {}", i % 100_000)).collect();
        let train = examples(&labels.iter().map(String::as_str).collect::<Vec<_>>());
        let clock = std::time::Instant::now();
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        let head: Vec<String> = map.names().iter().rev().cloned().collect();
        let map = map.in_order_of(Task::Classify, &head, &train);
        assert_eq!((map.names(), map.resolve(&train).unwrap().len()), (&head[..], 200_000));
        assert!(map.warnings(&train).is_empty());
        // a search through all names for each row takes minutes
        assert!(clock.elapsed().as_secs() < 20, "{:?}", clock.elapsed());
    }
}
