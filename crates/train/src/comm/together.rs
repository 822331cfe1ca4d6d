//! What the processes of a run agree on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use colrow_tensor::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Alone, Collective};

/// The processes of a run. What they call must be the same in all of them, in the same order.
#[derive(Clone, Debug)]
pub struct Together {
    processes: Arc<dyn Collective>,
    /// Whether they agreed that something failed.
    failed: Arc<AtomicBool>,
}

impl Default for Together {
    /// One process by itself.
    fn default() -> Self {
        Self::new(Arc::new(Alone))
    }
}

impl Together {
    /// These processes.
    pub fn new(processes: Arc<dyn Collective>) -> Self {
        Self { processes, failed: Arc::default() }
    }

    /// Sends and receives bytes.
    pub fn collective(&self) -> &dyn Collective {
        &*self.processes
    }

    /// Whether all of them know of an error: else the others wait for who has one.
    pub fn have_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.processes.rank()
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.processes.size()
    }

    /// Whether this is the process that writes logs, report and model, and speaks.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Every process's bytes, in their order.
    ///
    /// # Errors
    /// Processes that are gone or do not answer.
    pub fn all(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let size = self.size();
        if size == 1 {
            return Ok(vec![own.to_vec()]);
        }
        let mut lengths = vec![0; 8 * size];
        self.processes.gather(&(own.len() as u64).to_le_bytes(), &mut lengths, &vec![8; size])?;
        let (words, _) = lengths.as_chunks::<8>();
        let lengths: Vec<usize> = words.iter().map(|&word| u64::from_le_bytes(word) as usize).collect();
        let mut all = vec![0; lengths.iter().sum()];
        self.processes.gather(own, &mut all, &lengths)?;
        let mut rest = &all[..];
        let part = |&length: &usize| {
            let part;
            (part, rest) = rest.split_at(length);
            part.to_vec()
        };
        Ok(lengths.iter().map(part).collect())
    }

    /// Every process's value, in their order.
    ///
    /// # Errors
    /// As [`Together::all`].
    pub fn values<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>> {
        let broken = |e: serde_json::Error| Error::new(format!("another process says what is not understood: {e}"));
        let all = self.all(&serde_json::to_vec(own).map_err(broken)?)?;
        all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(broken)).collect()
    }

    /// Whether any process says so.
    ///
    /// # Errors
    /// As [`Together::all`].
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.all(&[u8::from(own)])?.iter().any(|flag| flag != &[0]))
    }

    /// The result, if it went well in all processes; else the error of the first in which it did not, the same in all. Work of which only some processes
    /// may fail ends with this, so that none waits for one that is gone.
    ///
    /// # Errors
    /// Those of any process.
    pub fn agree<T>(&self, own: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return own;
        }
        let said = self.values(&own.as_ref().err().cloned())?;
        let failed: Vec<(usize, &Error)> =
            said.iter().enumerate().filter_map(|(i, e)| Some((i, e.as_ref()?))).collect();
        let Some(&(first, error)) = failed.first() else { return own };
        self.failed.store(true, Ordering::SeqCst);
        // what all say is no affair of one
        let by_all = failed.len() == self.size() && failed.iter().all(|(_, e)| e.to_string() == error.to_string());
        let error = error.clone();
        Err(if by_all { error } else { error.at(format!("process {first} of {}", self.size())) })
    }

    /// Refuses processes that differ in `what`, as each of them tells of itself.
    ///
    /// # Errors
    /// The first process that differs from process 0, and in what.
    pub fn check_same(&self, what: &str, own: &str) -> Result<()> {
        let all = self.values(&own.to_owned())?;
        let Some(other) = all.iter().position(|text| *text != all[0]) else { return Ok(()) };
        self.agree(Err(Error::usage(format!(
            "the processes differ in {what}: process {other} has {}, process 0 has {}",
            all[other], all[0]
        ))
        .hint("all processes of a run need the same program, recipe, data and kind of processor")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Barrier, Mutex};

    use super::*;

    /// Processes that are threads: each leaves its bytes where the others find them.
    #[derive(Debug)]
    pub(crate) struct Threads {
        said: Mutex<Vec<(Vec<u8>, Vec<usize>)>>,
        turn: Barrier,
    }

    #[derive(Debug)]
    struct Thread {
        rank: usize,
        all: Arc<Threads>,
    }

    impl Collective for Thread {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.all.said.lock().unwrap().len()
        }

        fn exchange(&self, send: &[u8], lengths: &[usize], received: &mut [u8], own: &[usize]) -> Result<()> {
            self.all.said.lock().unwrap()[self.rank] = (send.to_vec(), lengths.to_vec());
            self.all.turn.wait();
            let mut rest = received;
            for ((bytes, lengths), &length) in self.all.said.lock().unwrap().iter().zip(own) {
                assert_eq!(lengths[self.rank], length);
                let first: usize = lengths[..self.rank].iter().sum();
                let part;
                (part, rest) = rest.split_at_mut(length);
                part.copy_from_slice(&bytes[first..first + length]);
            }
            self.all.turn.wait();
            Ok(())
        }

        fn gather(&self, own: &[u8], all: &mut [u8], lengths: &[usize]) -> Result<()> {
            assert_eq!(lengths[self.rank], own.len());
            self.all.said.lock().unwrap()[self.rank].0 = own.to_vec();
            self.all.turn.wait();
            let said: Vec<u8> = self.all.said.lock().unwrap().iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            all.copy_from_slice(&said);
            self.all.turn.wait();
            Ok(())
        }

        fn abort(&self, _code: i32) {}
    }

    /// What each of `size` processes gives.
    pub(crate) fn each<T: Send>(size: usize, run: impl Fn(Together) -> T + Sync) -> Vec<T> {
        let all = Arc::new(Threads { said: Mutex::new(vec![(vec![], vec![]); size]), turn: Barrier::new(size) });
        std::thread::scope(|scope| {
            let start = |rank| {
                let together = Together::new(Arc::new(Thread { rank, all: all.clone() }));
                let run = &run;
                scope.spawn(move || run(together))
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn bytes_of_any_length_come_from_all() {
        for size in 1..4 {
            let all = each(size, |together| together.all(&vec![together.rank() as u8; 3 * together.rank()]).unwrap());
            let want: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; 3 * rank]).collect();
            assert_eq!(all, vec![want; size]);
        }
    }

    #[test]
    fn an_error_of_one_is_an_error_of_all() {
        let fails = |which: &'static [usize]| {
            let of = |together: Together| {
                let rank = together.rank();
                together.agree(if which.contains(&rank) { Err(Error::usage("no disk").at("x")) } else { Ok(rank) })
            };
            each(3, of).into_iter().map(|result| result.map_err(|e| e.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(fails(&[]), [Ok(0), Ok(1), Ok(2)]);
        assert_eq!(fails(&[1, 2]), vec![Err("no disk\n  in x\n  in process 1 of 3".to_owned()); 3]);
        assert_eq!(fails(&[0, 1, 2]), vec![Err("no disk\n  in x".to_owned()); 3]);
        assert_eq!(each(3, |together| together.any(together.rank() == 2).unwrap()), [true; 3]);
        assert_eq!(each(3, |together| together.any(false).unwrap()), [false; 3]);
    }

    #[test]
    fn who_differs_is_named() {
        let differs = each(3, |t| t.check_same("their recipe", if t.rank() == 1 { "b" } else { "a" }).unwrap_err());
        assert!(
            differs
                .iter()
                .all(|e| e.what() == "the processes differ in their recipe: process 1 has b, process 0 has a")
        );
        assert!(each(2, |t| t.check_same("their recipe", "a").is_ok()).into_iter().all(|same| same));
    }
}
