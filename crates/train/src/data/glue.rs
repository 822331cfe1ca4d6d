//! GLUE as it is distributed: folder layouts and column names.

use super::record::{Column, Kind, Reading, Record};
use super::{Example, Examples, Names, Split, open, read_file, table};
use crate::tasks::{MSR, Task};
use colrow_models::files;
use colrow_tensor::{Error, Result};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The file of one split of a folder, if the folder has it.
///
/// MRPC's own download has no `dev.tsv`: its dev examples are those lines of `msr_paraphrase_train.txt` whose ids are in
/// `dev_ids.tsv` or `mrpc_dev_ids.tsv`; then the file is `msr_paraphrase_train.txt` for both splits.
pub fn split_file(folder: &Path, task: Task, split: Split) -> Option<PathBuf> {
    let all_in_one = || {
        let train = first(folder, candidates(task, Split::Train))?;
        (split == Split::Dev && train.ends_with(MSR) && dev_ids(folder).is_some()).then_some(train)
    };
    first(folder, candidates(task, split)).or_else(all_in_one)
}

fn first(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn candidates(task: Task, split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => task.spec().train,
        Split::Dev => task.spec().dev,
        Split::DevMismatched => &["dev_mismatched.tsv"],
    }
}

fn dev_ids(folder: &Path) -> Option<PathBuf> {
    first(folder, &["dev_ids.tsv", "mrpc_dev_ids.tsv"])
}

/// Reads one split of `folder`, and says which file it came from.
pub(crate) fn read(folder: &Path, split: Split, reading: &dyn Reading) -> Result<(Examples, PathBuf)> {
    let task = reading.task();
    let path = split_file(folder, task, split).ok_or_else(|| missing(folder, task, split))?;
    if !path.ends_with(MSR) {
        // what people put there for a task of their own may come from pandas
        return Ok((read_file(&path, reading, task.spec().glue)?, path));
    }
    let mut examples = table::glue_tsv(open(&path)?, reading).map_err(|e| e.at(path.display()))?;
    if let Some(ids) = dev_ids(folder) {
        let lines =
            files::open(&ids).and_then(std::io::read_to_string).map_err(|e| Error::from(e).at(ids.display()))?;
        let dev: HashSet<(&str, &str)> = lines.lines().filter_map(|line| line.trim().split_once('\t')).collect();
        let keys = table::glue_tsv(open(&path)?, &Ids).map_err(|e| e.at(path.display()))?;
        let in_dev = |key: &Example| dev.contains(&(&*key.text, key.pair.as_deref().unwrap_or_default()));
        let mut keys = keys.rows.iter();
        examples.rows.retain(|_| keys.next().is_some_and(in_dev) == (split == Split::Dev));
        if examples.rows.is_empty() {
            return Err(Error::new(format!("no example left for this split by {}", ids.display())).at(path.display()));
        }
    }
    Ok((examples, path))
}

/// Reads the two ids of MRPC's examples as texts.
struct Ids;

impl Reading for Ids {
    fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
        let column = |role, name| match found.iter().position(|other| *other == name) {
            Some(place) => Ok(Column::new(role, found, place, Kind::Text)),
            None => Err(Error::new(format!("no column {name:?}; found columns: {}", found.join(", ")))),
        };
        Ok(vec![column(Names::TEXT, "#1 ID")?, column(Names::PAIR, "#2 ID")?])
    }

    fn example(&self, mut record: Record, _notes: &mut Vec<String>) -> Result<Example> {
        let text = record.text(Names::TEXT).unwrap_or_default();
        Ok(Example { text, pair: record.text(Names::PAIR), line: record.line, row: record.row, ..Example::default() })
    }

    fn task(&self) -> Task {
        Task::Mrpc
    }
}

fn missing(folder: &Path, task: Task, split: Split) -> Error {
    let expected = candidates(task, split).join(" or ");
    let mut found: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    found.sort();
    let inside = found.iter().find(|name| {
        name.parse::<Task>().is_ok_and(|t| t == task) && split_file(&folder.join(name), task, split).is_some()
    });
    let hint = match inside {
        Some(name) => format!("did you mean {}?", folder.join(name).display()),
        None => "give a folder in GLUE's layout, or a .csv, .tsv, .jsonl or .parquet file".to_owned(),
    };
    found.truncate(8);
    let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
    Error::new(format!("expected {expected}, found {found}")).at(folder.display()).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::super::{Columns, read as read_path};
    use super::*;
    use crate::objective::LabelledTexts;

    /// Each task's train file as GLUE has it, with one or two examples, and what is to be read.
    const FILES: [(Task, &str, &str, [&str; 3]); 8] = [
        (
            Task::Cola,
            "train.tsv",
            "gj04\t1\t\tOur friends won't \"buy\" it.\nbc01\t0\t*\tx\n",
            ["Our friends won't \"buy\" it.", "", "1"],
        ),
        (Task::Sst2, "train.tsv", "sentence\tlabel\nhide \"new\t0\n", ["hide \"new", "", "0"]),
        (
            Task::Mrpc,
            "train.tsv",
            "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t702876\t702977\tAmrozi, \"it\tIt\r\n",
            ["Amrozi, \"it", "It", "1"],
        ),
        (
            Task::Qqp,
            "train.tsv",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow?\t0\n2\t3\t4\tshort\n",
            ["Why?", "How?", "0"],
        ),
        (
            Task::Mnli,
            "train.tsv",
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
             sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n\
             0\t31193\t31193n\tgov\t( a )\t( b )\t(ROOT)\t(ROOT)\tCream.\tProduct.\tneutral\tentailment\n",
            ["Cream.", "Product.", "entailment"],
        ),
        (
            Task::Qnli,
            "train.tsv",
            "index\tquestion\tsentence\tlabel\n0\tWhen?\tThen.\tnot_entailment\n",
            ["When?", "Then.", "not_entailment"],
        ),
        (
            Task::Rte,
            "train.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\tNo.\tYes.\tentailment\n",
            ["No.", "Yes.", "entailment"],
        ),
        (
            Task::Stsb,
            "train.tsv",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n\
             0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000\n",
            ["A plane.", "An air plane.", "5.000"],
        ),
    ];

    fn load(folder: &Path, task: Task, split: Split) -> Result<Examples> {
        read_path(folder, &LabelledTexts { task, columns: &Columns::default(), labels_required: true }, split)
    }

    #[test]
    fn every_task_as_distributed() {
        for (task, name, content, [text, pair, label]) in FILES {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), content).unwrap();
            let examples = load(folder.path(), task, Split::Train).unwrap();
            let first = &examples.rows[0];
            assert_eq!((first.text.as_str(), first.label.as_deref()), (text, Some(label)), "{task}");
            assert_eq!(first.pair.as_deref(), (!pair.is_empty()).then_some(pair), "{task}");
            assert_eq!(first.pair.is_some(), task.needs_pair());
            assert_eq!(examples.skipped, u64::from(task == Task::Qqp));
            assert_eq!(examples.warnings().len(), usize::from(task == Task::Qqp));
            let labels = super::super::LabelMap::of(task, &examples).unwrap().resolve(&examples).unwrap();
            assert_eq!(labels.len(), examples.rows.len());
        }
    }

    /// From the distributed files to what T5 reads and is to answer.
    #[test]
    fn every_task_in_words() {
        let words = [
            ("cola sentence: Our friends won't \"buy\" it.", "acceptable"),
            ("sst2 sentence: hide \"new", "negative"),
            ("mrpc sentence1: Amrozi, \"it sentence2: It", "equivalent"),
            ("qqp question1: Why? question2: How?", "not_duplicate"),
            ("mnli hypothesis: Product. premise: Cream.", "entailment"),
            ("qnli question: When? sentence: Then.", "not_entailment"),
            ("rte sentence1: No. sentence2: Yes.", "entailment"),
            ("stsb sentence1: A plane. sentence2: An air plane.", "5.0"),
        ];
        for ((task, name, content, _), (source, target)) in FILES.into_iter().zip(words) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), content).unwrap();
            let examples = load(folder.path(), task, Split::Train).unwrap();
            let map = super::super::LabelMap::of(task, &examples).unwrap();
            let wording = crate::objective::Wording::new(task, &map);
            assert_eq!(wording.source(&examples.rows[0]), source);
            assert_eq!(wording.target(&map.resolve(&examples).unwrap(), 0), target);
        }
    }

    #[test]
    fn cola_counts_lines_from_the_first_example() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train.tsv"), FILES[0].2).unwrap();
        let examples = load(folder.path(), Task::Cola, Split::Train).unwrap();
        assert_eq!(examples.rows.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 2]);
        // with a header it is an ordinary table
        fs::write(folder.path().join("train.tsv"), "sentence\tlabel\nx\t1\n").unwrap();
        assert_eq!(load(folder.path(), Task::Cola, Split::Train).unwrap().rows[0].line, 2);
    }

    #[test]
    fn mnli_has_two_dev_files() {
        let folder = tempfile::tempdir().unwrap();
        let content = |text| format!("sentence1\tsentence2\tgold_label\n{text}\tb\tneutral\n");
        fs::write(folder.path().join("dev_matched.tsv"), content("matched")).unwrap();
        fs::write(folder.path().join("dev_mismatched.tsv"), content("mismatched")).unwrap();
        for (split, text) in [(Split::Dev, "matched"), (Split::DevMismatched, "mismatched")] {
            assert_eq!(load(folder.path(), Task::Mnli, split).unwrap().rows[0].text, text);
        }
        assert_eq!(split_file(folder.path(), Task::Mnli, Split::Train), None);
    }

    #[test]
    fn mrpc_as_downloaded_from_its_authors() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t11\t12\ta\tb\r\n0\t21\t22\tc\td\r\n";
        fs::write(folder.path().join(MSR), rows).unwrap();
        let texts = |split| -> Vec<String> {
            load(folder.path(), Task::Mrpc, split).unwrap().rows.into_iter().map(|e| e.text).collect()
        };
        assert_eq!(texts(Split::Train), ["a", "c"]);
        assert!(load(folder.path(), Task::Mrpc, Split::Dev).is_err());
        fs::write(folder.path().join("dev_ids.tsv"), "11\t12\n").unwrap();
        assert_eq!(texts(Split::Train), ["c"]);
        assert_eq!(texts(Split::Dev), ["a"]);
        assert!(load(folder.path(), Task::Mrpc, Split::DevMismatched).is_err());
        // the ids say nothing about a train.tsv that may already be without them
        fs::write(folder.path().join("train.tsv"), rows).unwrap();
        assert_eq!(texts(Split::Train), ["a", "c"]);
        assert!(load(folder.path(), Task::Mrpc, Split::Dev).is_err());
    }

    #[test]
    fn folder_without_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let message = |task| load(folder.path(), task, Split::Train).unwrap_err().to_string();
        assert!(message(Task::Rte).contains("expected train.tsv, found nothing"));
        assert!(message(Task::Mrpc).contains("expected train.tsv or msr_paraphrase_train.txt"));
        fs::create_dir(folder.path().join("STS-B")).unwrap();
        fs::write(folder.path().join("STS-B/train.tsv"), "x").unwrap();
        let found = message(Task::Stsb);
        assert!(found.contains("found STS-B") && found.contains("did you mean") && found.contains("STS-B?"), "{found}");
        assert!(!message(Task::Rte).contains("did you mean"));
    }
}
