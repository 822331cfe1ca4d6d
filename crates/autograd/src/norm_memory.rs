//! What is remembered of the norms of dZ, for drawing rows before they are known.
//!
//! The *cache* holds, for every token of every training example and every sampled site, the norm that it had the last time: one
//! byte on a log scale. The *running* average holds a mean square by site and token group, for examples not seen before.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use colrow_tensor::{Class, Device, Error, HostBytes, Result, Tensor};
use memmap2::MmapMut;
use serde::{Deserialize, Serialize};

use crate::policy::NormSource;

/// Token groups of the running average: the first token if special, other special tokens, and ten octaves of positions.
const GROUPS: usize = 12;
/// Share of the past in the running average.
const PAST: f64 = 0.9;

/// Code of a norm that was never seen.
const UNSEEN: u8 = 0;
/// Code of an exact zero.
const ZERO: u8 = 1;
/// Codes per octave and the code of 1: codes 2…255 cover 2^−49 … 2^14.
const PER_OCTAVE: f64 = 4.0;
const ONE: f64 = 200.0;

/// A norm as one byte: relative error at most 2^(1/8) − 1, about 9 %.
fn encode(norm: f64) -> u8 {
    if norm > 0.0 { (norm.log2() * PER_OCTAVE + ONE).round().clamp(2.0, 255.0) as u8 } else { ZERO }
}

fn decode(code: u8) -> f64 {
    if code == ZERO { 0.0 } else { ((f64::from(code) - ONE) / PER_OCTAVE).exp2() }
}

/// What the rows of a site's input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOf {
    /// The batch's tokens, those of the sources where there are targets.
    Tokens,
    /// The tokens of the targets.
    Targets,
    /// A row a sequence: nothing is remembered of them.
    Sequences,
}

/// Where tokens of a batch stand in the training set.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// For each token its number in the training set; `None` for a stream or an evaluation batch.
    pub tokens: Option<Vec<u64>>,
    /// For each token its position in its sequence and whether it is a special token.
    pub positions: Vec<(u32, bool)>,
}

/// Where the tokens of a batch stand in the training set.
#[derive(Clone, Debug, Default)]
pub struct BatchPlaces {
    /// The tokens, those of the sources where there are targets.
    pub tokens: Places,
    /// The tokens of the targets.
    pub targets: Places,
    /// What the loss is a mean of, the weight of all that counts in it: norms are of a mean loss, and times this they compare across batches.
    pub weight: f64,
}

impl BatchPlaces {
    fn of(&self, rows: RowsOf) -> Option<&Places> {
        match rows {
            RowsOf::Tokens => Some(&self.tokens),
            RowsOf::Targets => Some(&self.targets),
            RowsOf::Sequences => None,
        }
    }
}

/// The running averages, by site: mean squares by token group, negative before the first batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Running(pub HashMap<String, [f64; GROUPS]>);

/// Where the cache's bytes live.
#[derive(Debug)]
pub enum CachePlace<'a> {
    /// In memory.
    Memory,
    /// In a mapped file at this path, made anew; a checkpoint's bytes come back by [`NormMemory::restore`].
    File(&'a Path),
}

#[derive(Debug)]
enum Codes {
    Memory(HostBytes),
    File(MmapMut),
}

impl Codes {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(map) => map,
        }
    }
}

#[derive(Debug)]
struct State {
    codes: Codes,
    running: Running,
    batch: BatchPlaces,
    /// Norms that are still on the device: of the pass that is under way.
    recorded: Vec<(String, Tensor)>,
    /// What the step's passes give the running averages, in their order: by site and group the sum of squares and their number.
    passed: Vec<(String, [(f64, u32); GROUPS])>,
}

/// Remembered norms of dZ. One memory serves one training run.
#[derive(Debug)]
pub struct NormMemory {
    sites: HashMap<String, (usize, RowsOf)>,
    tokens: usize,
    state: Mutex<State>,
}

fn group(position: u32, special: bool) -> usize {
    match (special, position) {
        (true, 0) => 0,
        (true, _) => 1,
        (false, p) => 2 + ((p + 1).ilog2() as usize).min(GROUPS - 3),
    }
}

impl NormMemory {
    /// An empty memory for `tokens` training tokens, targets included, at each of `sites`: `sites × tokens` bytes.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn new(device: &Device, sites: &[(String, RowsOf)], tokens: usize, store: CachePlace<'_>) -> Result<Self> {
        let bytes = sites.len() * tokens;
        let codes = match store {
            CachePlace::Memory => Codes::Memory(device.host_bytes(Class::Cache, bytes)),
            CachePlace::File(path) => Codes::File(map_file(path, bytes)?),
        };
        let sites = sites.iter().enumerate().map(|(i, (s, rows))| (s.clone(), (i, *rows))).collect();
        let state = State {
            codes,
            running: Running::default(),
            batch: BatchPlaces::default(),
            recorded: Vec::new(),
            passed: Vec::new(),
        };
        Ok(Self { sites, tokens, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the tokens of the batch that the next pass sees; on the shape-only device too, where their number matters. What an earlier pass
    /// recorded and nobody took is forgotten.
    pub fn begin(&self, batch: BatchPlaces) {
        let mut state = self.state();
        state.batch = batch;
        state.recorded.clear();
    }

    /// Estimated norms of dZ at `site` for the batch's tokens; all equal before the first record, so that the first step needs
    /// the memory that later ones do. `None` if nothing is remembered: for other sources, and for rows that are not the batch's
    /// tokens (a pooled row per sequence).
    pub fn estimate(&self, site: &str, source: NormSource, like: &Tensor) -> Option<Tensor> {
        if matches!(source, NormSource::Uniform | NormSource::Current) {
            return None;
        }
        let state = self.state();
        let &(place, rows) = self.sites.get(site)?;
        let places = state.batch.of(rows)?;
        let n = like.len();
        let mut norms = like.empty_like();
        let Some(running) = state.running.0.get(site) else {
            norms.write_f64(std::iter::repeat_n(1.0, n));
            return Some(norms);
        };
        // a group without history takes the mean of the others
        let known = || running.iter().filter(|&&m| m >= 0.0);
        let mean = known().sum::<f64>() / known().count().max(1) as f64;
        let by_group = |i: usize| {
            let (position, special) = places.positions[i];
            let square = running[group(position, special)];
            if square >= 0.0 { square.sqrt() } else { mean.sqrt() }
        };
        let place = place * self.tokens;
        let codes = state.codes.bytes();
        let seen = |i: usize| match &places.tokens {
            Some(tokens) if source == NormSource::Cached => codes[place + tokens[i] as usize],
            _ => UNSEEN,
        };
        norms.write_f64((0..n).map(|i| match seen(i) {
            UNSEEN => by_group(i),
            code => decode(code),
        }));
        Some(norms)
    }

    /// Holds the true norms of dZ at `site` for the batch's tokens, on the device, until the pass's are read all at once.
    pub fn record(&self, site: &str, norms: &Tensor) {
        let mut state = self.state();
        if self.sites.get(site).is_some_and(|&(_, rows)| state.batch.of(rows).is_some()) {
            state.recorded.push((site.to_owned(), norms.clone()));
        }
    }

    /// The norms that the pass recorded, by site, to be read together and then remembered in this order.
    pub fn recorded(&self) -> Vec<(String, Tensor)> {
        self.state().recorded.clone()
    }

    /// Remembers the norms of [`NormMemory::recorded`] for the tokens of the batch that was named last, whoever's pass recorded them. Running
    /// averages follow at the end of the step, so that its passes do not depend on each other.
    pub fn remember(&self, recorded: Vec<(String, Vec<f64>)>) {
        let mut guard = self.state();
        let State { codes, batch, passed, recorded: own, .. } = &mut *guard;
        own.clear();
        for (site, norms) in recorded {
            let Some(&(place, rows)) = self.sites.get(&site) else { continue };
            let Some(places) = batch.of(rows).filter(|_| !norms.is_empty()) else { continue };
            let norms: Vec<f64> = norms.into_iter().map(|z| z * batch.weight).collect();
            // a diverged step is caught by its loss; it must not poison what is remembered
            if !norms.iter().all(|z| z.is_finite()) {
                continue;
            }
            if let Some(tokens) = &places.tokens {
                let codes = &mut codes.bytes_mut()[place * self.tokens..][..self.tokens];
                tokens.iter().zip(&norms).for_each(|(&t, &z)| codes[t as usize] = encode(z));
            }
            let mut sums = [(0.0, 0); GROUPS];
            for (&(position, special), z) in places.positions.iter().zip(&norms) {
                let (sum, count) = &mut sums[group(position, special)];
                *sum += z * z;
                *count += 1;
            }
            passed.push((site, sums));
        }
    }

    /// Ends a step: running averages follow what its passes remembered, in their order.
    pub fn end_step(&self) {
        let mut guard = self.state();
        let State { running, passed, .. } = &mut *guard;
        for (site, sums) in passed.drain(..) {
            let means = running.0.entry(site).or_insert([-1.0; GROUPS]);
            for (mean, (sum, count)) in means.iter_mut().zip(sums).filter(|(_, (_, count))| *count > 0) {
                let now = sum / f64::from(count);
                *mean = if *mean < 0.0 { now } else { PAST * *mean + (1.0 - PAST) * now };
            }
        }
    }

    /// Reads and remembers what the one pass of a step recorded.
    pub fn settle(&self) {
        let (sites, norms): (Vec<String>, Vec<Tensor>) = self.recorded().into_iter().unzip();
        if let Some(first) = norms.first() {
            let norms = first.device().read(&norms.iter().collect::<Vec<_>>());
            self.remember(sites.into_iter().zip(norms).collect());
        }
        self.end_step();
    }

    /// Hands the running averages and the cache's bytes to `save`, for a checkpoint; a copy would double the cache's memory.
    pub fn save<T>(&self, save: impl FnOnce(&Running, &[u8]) -> T) -> T {
        let state = self.state();
        save(&state.running, state.codes.bytes())
    }

    /// Puts a snapshot back.
    ///
    /// # Errors
    /// A cache of another size: other data or other sites.
    pub fn restore(&self, running: Running, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        let codes = state.codes.bytes_mut();
        if codes.len() != bytes.len() {
            return Err(Error::new(format!(
                "expected a norm cache of {} bytes, found {}: other data or other sampled sites",
                codes.len(),
                bytes.len()
            )));
        }
        codes.copy_from_slice(bytes);
        state.running = running;
        Ok(())
    }
}

fn map_file(path: &Path, bytes: usize) -> Result<MmapMut> {
    let bytes = bytes.max(1);
    let open = || -> io::Result<MmapMut> {
        // what stands there is an earlier process's, or a link to somebody's file
        fs::remove_file(path).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if let Err(e) = reserve(&mut file, bytes as u64) {
            // the first error is the one to tell
            let _ = fs::remove_file(path);
            return Err(e);
        }
        // SAFETY: the file is this run's own; the run folder is locked against other runs.
        unsafe { MmapMut::map_mut(&file) }
    };
    open().map_err(|e| {
        let error = Error::new(format!("cannot map the norm cache of {bytes} bytes: {e}")).at(path.display());
        match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                error.hint("make room there, hold it in memory by keep.cache = \"memory\", or do without by keep.norms = \"current\"")
            }
            _ => error,
        }
    })
}

/// Gives an empty file its length, all zeros, and the disk's room for it: where a mapped page finds no room the process dies.
fn reserve(file: &mut File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::{Errno, retry_on_intr};
        match retry_on_intr(|| fallocate(&*file, FallocateFlags::empty(), 0, bytes)) {
            // a file system that cannot
            Err(Errno::NOTSUP | Errno::NOSYS) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    write_zeros(file, bytes)
}

fn write_zeros(file: &mut File, bytes: u64) -> io::Result<()> {
    let zeros = [0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        file.write_all(&zeros[..n as usize])?;
        left -= n;
    }
    // some file systems find out only now
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use colrow_tensor::DType;

    use super::*;

    fn batch(tokens: &[u64]) -> BatchPlaces {
        let positions = (0..tokens.len() as u32).map(|p| (p, p == 0)).collect();
        let tokens = Places { tokens: Some(tokens.to_vec()), positions };
        // the targets stand elsewhere in the training set
        let targets = Places { tokens: Some(vec![9]), positions: vec![(0, false)] };
        BatchPlaces { tokens, targets, weight: 1.0 }
    }

    fn stream(positions: &[(u32, bool)]) -> BatchPlaces {
        let tokens = Places { tokens: None, positions: positions.to_vec() };
        BatchPlaces { tokens, targets: Places::default(), weight: 1.0 }
    }

    fn sites() -> [(String, RowsOf); 4] {
        let site = |name: &str, rows| (name.to_owned(), rows);
        [
            site("a", RowsOf::Tokens),
            site("b", RowsOf::Tokens),
            site("target", RowsOf::Targets),
            site("pooled", RowsOf::Sequences),
        ]
    }

    #[test]
    fn codes_are_within_nine_percent() {
        for i in -400..130 {
            let norm = (f64::from(i) * 0.1).exp2() * 1.013;
            let back = decode(encode(norm));
            assert!((back / norm).log2().abs() <= 0.125 + 1e-9, "{norm} came back as {back}");
        }
        assert_eq!(decode(encode(0.0)), 0.0);
        assert_eq!((encode(1e-300), encode(1e300)), (2, 255));
    }

    #[test]
    fn remembers_tokens_and_falls_back_to_groups() {
        let device = Device::cpu();
        let file = tempfile::tempdir().unwrap();
        for store in [CachePlace::Memory, CachePlace::File(&file.path().join("norms"))] {
            let memory = NormMemory::new(&device, &sites(), 10, store).unwrap();
            let like = device.zeros(Class::Workspace, DType::F64, &[3]);
            memory.begin(batch(&[4, 5, 6]));
            assert_eq!(
                memory.estimate("b", NormSource::Cached, &like).unwrap().to_f64(),
                [1.0; 3],
                "nothing known yet"
            );
            memory.record("b", &device.tensor(Class::Workspace, &[3], &[1.0, 0.0, 4.0]));
            memory.settle();
            let get = |source| memory.estimate("b", source, &like).unwrap().to_f64();
            assert_eq!(get(NormSource::Cached), [1.0, 0.0, 4.0]);
            memory.begin(batch(&[0, 6, 1]));
            // token 6 was seen; the first special token and position 2 come from their groups' averages
            assert_eq!(get(NormSource::Cached)[1], 4.0);
            assert_eq!(get(NormSource::Cached)[0], 1.0);
            assert_eq!(get(NormSource::Running)[1], get(NormSource::Running)[2]);
            assert_eq!(memory.estimate("a", NormSource::Cached, &like).unwrap().to_f64(), [1.0; 3]);
            let (running, bytes) = snapshot(&memory);
            let other = NormMemory::new(&device, &sites(), 10, CachePlace::Memory).unwrap();
            other.restore(running, &bytes).unwrap();
            assert_eq!(snapshot(&other), snapshot(&memory));
            assert!(other.restore(Running::default(), &bytes[1..]).is_err());
        }
    }

    #[test]
    fn a_mapped_file_has_its_room_on_the_disk_and_its_length() {
        let dir = tempfile::tempdir().unwrap();
        for (name, fill) in [("reserved", reserve as fn(&mut File, u64) -> io::Result<()>), ("written", write_zeros)] {
            let path = dir.path().join(name);
            let mut file = File::create_new(&path).unwrap();
            fill(&mut file, 1_000_001).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 1_000_001, "{name}");
            #[cfg(target_os = "linux")]
            assert!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512 >= 1_000_001, "{name}");
        }
    }

    #[test]
    fn a_mapped_file_never_replaces_what_a_link_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, link) = (dir.path().join("mine"), dir.path().join("norms.bin"));
        fs::write(&mine, "precious").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        map_file(&link, 10).unwrap()[0] = 1;
        assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
        assert!(map_file(dir.path(), 10).is_err());
    }

    fn snapshot(memory: &NormMemory) -> (Running, Vec<u8>) {
        memory.save(|running, codes| (running.clone(), codes.to_vec()))
    }

    fn memory() -> (Device, NormMemory, Tensor) {
        let device = Device::cpu();
        let memory = NormMemory::new(&device, &sites(), 10, CachePlace::Memory).unwrap();
        let like = device.zeros(Class::Workspace, DType::F32, &[3]);
        (device, memory, like)
    }

    #[test]
    fn norms_that_are_not_finite_are_not_recorded() {
        let (device, memory, _) = memory();
        memory.begin(batch(&[0, 1, 2]));
        memory.record("a", &device.tensor(Class::Workspace, &[3], &[1.0_f32, 2.0, 4.0]));
        memory.settle();
        let before = snapshot(&memory);
        for bad in [f32::NAN, f32::INFINITY] {
            memory.record("a", &device.tensor(Class::Workspace, &[3], &[8.0, bad, 8.0]));
            memory.settle();
        }
        assert_eq!(snapshot(&memory), before);
    }

    #[test]
    fn a_stream_uses_and_moves_running_averages_only() {
        let (device, memory, like) = memory();
        memory.begin(batch(&[0, 1, 2]));
        memory.record("a", &device.tensor(Class::Workspace, &[3], &[1.0_f32, 2.0, 4.0]));
        memory.settle();
        let codes = snapshot(&memory).1;
        memory.begin(stream(&[(0, true), (1, false), (2, false)]));
        let get = |source| memory.estimate("a", source, &like).unwrap().to_f64();
        // positions 1 and 2 share a group: √((2² + 4²)/2)
        let group = f64::from(10_f32.sqrt());
        assert_eq!(get(NormSource::Cached), [1.0, group, group]);
        memory.record("a", &device.tensor(Class::Workspace, &[3], &[1.0_f32, 0.0, 0.0]));
        memory.settle();
        let group = f64::from(9_f32.sqrt());
        assert_eq!(get(NormSource::Running), [1.0, group, group]);
        assert_eq!(snapshot(&memory).1, codes);
        // a position without history takes the mean square of the known groups, √((1 + 9)/2)
        memory.begin(stream(&[(0, true), (1, false), (200, false)]));
        assert_eq!(get(NormSource::Running)[2], f64::from(5_f32.sqrt()));
    }

    #[test]
    fn norms_compare_across_batch_sizes() {
        let (device, memory, like) = memory();
        // the mean loss of four sequences has a quarter of one sequence's gradient
        memory.begin(BatchPlaces { weight: 4.0, ..batch(&[0, 1, 2]) });
        memory.record("a", &device.tensor(Class::Workspace, &[3], &[0.25_f32, 0.5, 1.0]));
        memory.settle();
        memory.begin(batch(&[0, 1, 2]));
        assert_eq!(memory.estimate("a", NormSource::Cached, &like).unwrap().to_f64(), [1.0, 2.0, 4.0]);
    }

    #[test]
    fn rows_that_are_not_tokens_are_neither_estimated_nor_recorded() {
        let (device, memory, _) = memory();
        memory.begin(batch(&[0, 1, 2]));
        let pooled = device.tensor(Class::Workspace, &[2], &[1.0_f32, 2.0]);
        let before = snapshot(&memory);
        memory.record("pooled", &pooled);
        memory.settle();
        assert_eq!(snapshot(&memory), before);
        for source in [NormSource::Cached, NormSource::Running] {
            assert!(memory.estimate("pooled", source, &pooled).is_none());
        }
    }

    /// Targets have places of their own, also where there are as many as tokens.
    #[test]
    fn targets_are_remembered_apart() {
        let (device, memory, _) = memory();
        memory.begin(batch(&[0]));
        let one = |norm: f32| device.tensor(Class::Workspace, &[1], &[norm]);
        memory.record("a", &one(2.0));
        memory.settle();
        memory.record("target", &one(8.0));
        memory.settle();
        let get = |site| memory.estimate(site, NormSource::Cached, &one(0.0)).unwrap().to_f64();
        assert_eq!((get("a"), get("target")), (vec![2.0], vec![8.0]));
        // token 9 is that target
        memory.begin(batch(&[9]));
        assert_eq!(get("target"), [8.0]);
        assert_eq!(snapshot(&memory).1.iter().filter(|&&code| code != UNSEEN).count(), 2);
    }

    #[test]
    fn estimates_need_the_same_memory_at_every_step_and_on_every_device() {
        let real = Device::cpu();
        let (mut live, mut peaks) = (vec![], vec![]);
        for device in [real, Device::meta(1)] {
            let memory = NormMemory::new(&device, &sites(), 10, CachePlace::Memory).unwrap();
            let like = device.zeros(Class::Workspace, DType::F32, &[3]);
            memory.begin(batch(&[0, 1, 2]));
            for source in [NormSource::Cached, NormSource::Running, NormSource::Uniform, NormSource::Cached] {
                device.meter().reset_peak();
                let norms = memory.estimate("a", source, &like);
                live.push((source, device.meter().live()));
                peaks.push(device.meter().peak());
                norms.into_iter().for_each(|norms| memory.record("a", &norms));
                memory.settle();
            }
        }
        assert_eq!((live[0].1, peaks[0]), (live[3].1, peaks[3]), "first step and later");
        assert_eq!((&live[..4], &peaks[..4]), (&live[4..], &peaks[4..]), "real and shape-only");
    }
}
