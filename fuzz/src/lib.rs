//! What the targets share.

use colrow_train::data::{Columns, Examples, LabelMap};
use colrow_train::objective::LabelledTexts;
use colrow_train::tasks::Task;

/// Hands `read` what each kind of task reads, and resolves the labels of what it reads.
pub fn examples<E>(read: impl Fn(&LabelledTexts) -> Result<Examples, E>) {
    let columns = Columns::default();
    for task in [Task::Classify, Task::Regress, Task::Cola, Task::Qqp] {
        let want = LabelledTexts { task, columns: &columns, labels_required: false };
        if let Ok(examples) = read(&want) {
            let _ = LabelMap::of(task, &examples).and_then(|map| map.resolve(&examples));
        }
    }
}
