//! MPI, found when the program runs: the functions of the C interface that are used, and the values by which libraries name things.
//!
//! Three kinds of libraries differ in how they write a communicator, a type or a request: as an address of their own (Open MPI), as a number of 32 bits (MPICH
//! and those that share its ABI: Intel MPI, Cray, MVAPICH), as a small number in a pointer (the ABI of MPI 5.0, chapter 20). All are passed
//! here as 64 bits: a function that takes 32 reads the lower half of the register, and one that writes a request of 32 bits writes the lower
//! half of the word that it is given, on little-endian processors, which are the ones that colrow runs on.

use std::ffi::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use colrow_tensor::{Error, Result};
use libloading::{Library, Symbol};

use super::Collective;

/// A communicator, type, error handler or request.
type Handle = u64;
/// More than `MPI_Status` takes in any of them (20 to 32 bytes).
type Status = [u64; 16];

/// Most bytes of one call: counts and places are 32 bits with a sign.
const MOST: usize = 1 << 30;
/// A variable with the seconds that other processes may take to answer.
pub(super) const TIMEOUT: &str = "COLROW_MPI_TIMEOUT";
/// More than the longest text that a library says of an error.
const TEXT: usize = 1024;

/// The values that a kind of library has.
#[derive(Clone, Copy, Debug)]
struct Values {
    world: Handle,
    byte: Handle,
    errors_return: Handle,
    /// `MPI_THREAD_SERIALIZED`.
    serialized: c_int,
}

/// The values of MPICH's `mpi.h`, the same since its version 3.1 (the common ABI of MPICH's kin).
const MPICH: Values = Values { world: 0x4400_0000, byte: 0x4c00_010d, errors_return: 0x5400_0001, serialized: 2 };
/// Those of the ABI of MPI 5.0 (appendix A.1 of the standard).
const STANDARD: Values = Values { world: 0x101, byte: 0x247, errors_return: 0x143, serialized: 2048 };

/// The functions that are used, with the types of the C interface.
struct Functions {
    init_thread: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    comm_set_errhandler: unsafe extern "C" fn(Handle, Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut Status) -> c_int,
    #[allow(clippy::type_complexity, reason = "as C has it")]
    ialltoallv: unsafe extern "C" fn(
        *const c_void,
        *const c_int,
        *const c_int,
        Handle,
        *mut c_void,
        *const c_int,
        *const c_int,
        Handle,
        Handle,
        *mut Handle,
    ) -> c_int,
    #[allow(clippy::type_complexity, reason = "as C has it")]
    iallgatherv: unsafe extern "C" fn(
        *const c_void,
        c_int,
        Handle,
        *mut c_void,
        *const c_int,
        *const c_int,
        Handle,
        Handle,
        *mut Handle,
    ) -> c_int,
}

impl Functions {
    fn of(library: &Library) -> std::result::Result<Self, libloading::Error> {
        macro_rules! find {
            ($($field:ident: $name:literal),* $(,)?) => {
                // SAFETY: the types are those of the C interface, which the fields repeat
                unsafe { Self { $($field: *library.get($name)?),* } }
            };
        }
        Ok(find! {
            init_thread: b"MPI_Init_thread\0",
            finalize: b"MPI_Finalize\0",
            abort: b"MPI_Abort\0",
            comm_rank: b"MPI_Comm_rank\0",
            comm_size: b"MPI_Comm_size\0",
            comm_set_errhandler: b"MPI_Comm_set_errhandler\0",
            error_string: b"MPI_Error_string\0",
            test: b"MPI_Test\0",
            ialltoallv: b"MPI_Ialltoallv\0",
            iallgatherv: b"MPI_Iallgatherv\0",
        })
    }
}

impl Values {
    /// The values of a library: addresses of its own if it has them, else those of the standard's ABI if it says that it follows that.
    fn of(library: &Library) -> Self {
        let address = |name: &[u8]| {
            // SAFETY: the symbol is a variable, of which only the address is taken
            unsafe { library.get::<*mut c_void>(name) }.ok().map(|symbol: Symbol<'_, *mut c_void>| {
                // SAFETY: the symbol lives as long as the library, and is not read
                unsafe { symbol.into_raw() }.as_raw_ptr() as Handle
            })
        };
        let own =
            (address(b"ompi_mpi_comm_world\0"), address(b"ompi_mpi_byte\0"), address(b"ompi_mpi_errors_return\0"));
        if let (Some(world), Some(byte), Some(errors_return)) = own {
            return Self { world, byte, errors_return, ..MPICH };
        }
        // SAFETY: the type is that of the C interface
        let version =
            unsafe { library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"MPI_Abi_get_version\0") };
        let (mut major, mut minor): (c_int, c_int) = (-1, -1);
        if let Ok(version) = version {
            // SAFETY: both numbers are there to be written; the function may be called before MPI is initialised (MPI 5.0, section 20.2)
            unsafe { version(&raw mut major, &raw mut minor) };
        }
        if major >= 1 { STANDARD } else { MPICH }
    }
}

/// All processes that a launcher started together.
pub(super) struct Mpi {
    functions: Functions,
    values: Values,
    rank: usize,
    size: usize,
    /// How long the others may take to answer.
    patience: Duration,
    /// One call at a time, as `MPI_THREAD_SERIALIZED` wants it; whether one failed, after which none is made.
    calls: Mutex<bool>,
    file: PathBuf,
    /// Its functions are called until the process ends.
    _library: Library,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of {} over {}", self.rank, self.size, self.file.display())
    }
}

impl Mpi {
    /// Loads a library and begins; every process of the launcher has to. `None` if there is no such library.
    ///
    /// # Errors
    /// A library that lacks functions, or cannot begin.
    pub(super) fn start(file: &Path, patience: Duration) -> Result<Option<Self>> {
        let open = |file: &Path| {
            #[cfg(unix)]
            {
                use libloading::os::unix::{self, RTLD_GLOBAL, RTLD_NOW};
                // SAFETY: what an MPI library does as it is loaded is what every MPI program lets it do. Open MPI's plugins look for symbols of
                // the library among global ones
                unsafe { unix::Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.map(Library::from)
            }
            #[cfg(not(unix))]
            // SAFETY: as above
            unsafe {
                Library::new(file)
            }
        };
        let Ok(library) = open(file) else { return Ok(None) };
        let functions = Functions::of(&library).map_err(|e| Error::new(e.to_string()).at(file.display()))?;
        let values = Values::of(&library);
        let (rank, size, calls, file) = (0, 1, Mutex::new(false), file.to_owned());
        let mut mpi = Self { functions, values, rank, size, patience, calls, file, _library: library };
        let (mut provided, mut rank, mut size): (c_int, c_int, c_int) = (0, 0, 0);
        // SAFETY: without arguments, as MPI 2.0 and later allow; the number is there to be written
        let code = unsafe {
            (mpi.functions.init_thread)(ptr::null_mut(), ptr::null_mut(), mpi.values.serialized, &raw mut provided)
        };
        mpi.check(code, "MPI_Init_thread")?;
        if provided < mpi.values.serialized {
            return Err(Error::new("the MPI library cannot be called from several threads, one at a time")
                .at(mpi.file.display())
                .hint("choose a build with thread support"));
        }
        // SAFETY: MPI is initialised, and the handles are of this library
        let code = unsafe { (mpi.functions.comm_set_errhandler)(mpi.values.world, mpi.values.errors_return) };
        mpi.check(code, "MPI_Comm_set_errhandler")?;
        // SAFETY: as above; the number is there to be written
        let code = unsafe { (mpi.functions.comm_rank)(mpi.values.world, &raw mut rank) };
        mpi.check(code, "MPI_Comm_rank")?;
        // SAFETY: as above
        let code = unsafe { (mpi.functions.comm_size)(mpi.values.world, &raw mut size) };
        mpi.check(code, "MPI_Comm_size")?;
        (mpi.rank, mpi.size) = (rank as usize, size as usize);
        Ok(Some(mpi))
    }

    fn check(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text = vec![0_u8; TEXT];
        let mut length: c_int = 0;
        // SAFETY: the text has the length that the library with the longest asks for
        unsafe { (self.functions.error_string)(code, text.as_mut_ptr().cast(), &raw mut length) };
        text.truncate((length.max(0) as usize).min(TEXT));
        Err(Error::new(format!("{what} failed: {}", String::from_utf8_lossy(&text).trim_end_matches('\0')))
            .at(self.file.display()))
    }

    /// Starts a call that answers later, and waits for it.
    fn wait(&self, what: &str, start: impl FnOnce(*mut Handle) -> c_int) -> Result<()> {
        let mut failed = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(Error::new("other processes are gone"));
        }
        let (mut request, mut status): (Handle, Status) = (0, [0; 16]);
        let result = self.check(start(&raw mut request), what).and_then(|()| {
            let clock = Instant::now();
            loop {
                let mut done: c_int = 0;
                // SAFETY: the request is one that the library wrote, and the status is large enough
                let code = unsafe { (self.functions.test)(&raw mut request, &raw mut done, &raw mut status) };
                self.check(code, what)?;
                if done != 0 {
                    return Ok(());
                }
                let waited = clock.elapsed();
                if waited > self.patience {
                    return Err(Error::new(format!(
                        "other processes have not answered for {} s: one hangs, or is much slower",
                        self.patience.as_secs()
                    ))
                    .hint(format!("{TIMEOUT} says for how many seconds to wait")));
                }
                // the library moves bytes within calls, so that sleeping slows them down: only who waits for work sleeps
                if waited > Duration::from_secs(1) {
                    std::thread::sleep(Duration::from_micros(200));
                } else {
                    std::thread::yield_now();
                }
            }
        });
        *failed = result.is_err();
        result
    }
}

/// Where bytes begin. No bytes begin at an address of their own: an empty slice's may be the one that stands for `MPI_IN_PLACE`.
fn begin(bytes: &[u8]) -> *const c_void {
    static NONE: u64 = 0;
    if bytes.is_empty() { (&raw const NONE).cast() } else { bytes.as_ptr().cast() }
}

/// As [`begin`], to be written; of no bytes nothing is.
fn begin_mut(bytes: &mut [u8]) -> *mut c_void {
    if bytes.is_empty() { begin(&[]).cast_mut() } else { bytes.as_mut_ptr().cast() }
}

/// Counts and places of parts one after the other, as MPI takes them.
fn parts(lengths: &[usize]) -> [Vec<c_int>; 2] {
    let mut first = 0;
    let place = |length: &usize| {
        let place = first;
        first += length;
        place as c_int
    };
    let places = lengths.iter().map(place).collect();
    [lengths.iter().map(|&length| length as c_int).collect(), places]
}

/// The lengths of the pieces, one after the other, into which parts of these lengths are cut so that those of a call have at most `most` bytes.
fn pieces(lengths: &[usize], most: usize) -> impl Iterator<Item = Vec<std::ops::Range<usize>>> {
    let each = (most / lengths.len().max(1)).max(1);
    let calls = lengths.iter().max().map_or(0, |length| length.div_ceil(each)).max(1);
    let lengths = lengths.to_vec();
    (0..calls)
        .map(move |i| lengths.iter().map(|&length| (i * each).min(length)..((i + 1) * each).min(length)).collect())
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, send: &[u8], lengths: &[usize], received: &mut [u8], own: &[usize]) -> Result<()> {
        assert!(lengths.len() == self.size && own.len() == self.size, "a part for each process");
        assert!(lengths.iter().sum::<usize>() == send.len() && own.iter().sum::<usize>() == received.len());
        assert!(send.len() <= MOST && received.len() <= MOST, "who exchanges cuts what is large");
        let ([counts, places], [own, own_places]) = (parts(lengths), parts(own));
        self.wait("MPI_Ialltoallv", |request| {
            // SAFETY: counts and places lie within the buffers, which are borrowed until the request is done: after an error the process ends
            // and the library is not called again
            unsafe {
                (self.functions.ialltoallv)(
                    begin(send),
                    counts.as_ptr(),
                    places.as_ptr(),
                    self.values.byte,
                    begin_mut(received),
                    own.as_ptr(),
                    own_places.as_ptr(),
                    self.values.byte,
                    self.values.world,
                    request,
                )
            }
        })
    }

    fn gather(&self, own: &[u8], all: &mut [u8], lengths: &[usize]) -> Result<()> {
        assert!(lengths.len() == self.size && lengths[self.rank] == own.len(), "a length for each process");
        assert!(lengths.iter().sum::<usize>() == all.len());
        if all.len() > MOST {
            return self.gather_pieces(own, all, lengths);
        }
        let [counts, places] = parts(lengths);
        self.wait("MPI_Iallgatherv", |request| {
            // SAFETY: as for `exchange`
            unsafe {
                (self.functions.iallgatherv)(
                    begin(own),
                    own.len() as c_int,
                    self.values.byte,
                    begin_mut(all),
                    counts.as_ptr(),
                    places.as_ptr(),
                    self.values.byte,
                    self.values.world,
                    request,
                )
            }
        })
    }

    fn is_broken(&self) -> bool {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self, code: i32) {
        // SAFETY: MPI is initialised; the call does not come back where it works
        unsafe { (self.functions.abort)(self.values.world, code) };
        std::process::exit(code);
    }
}

impl Mpi {
    fn gather_pieces(&self, own: &[u8], all: &mut [u8], lengths: &[usize]) -> Result<()> {
        let mut piece = Vec::new();
        for ranges in pieces(lengths, MOST) {
            let sizes: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
            piece.resize(sizes.iter().sum(), 0);
            self.gather(&own[ranges[self.rank].clone()], &mut piece, &sizes)?;
            let (mut first, mut from) = (0, 0);
            for (range, length) in ranges.iter().zip(lengths) {
                all[first + range.start..first + range.end].copy_from_slice(&piece[from..from + range.len()]);
                first += length;
                from += range.len();
            }
        }
        Ok(())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // the others would wait for this one
            self.abort(101);
        }
        if !self.is_broken() {
            // SAFETY: nothing is under way, and nothing is called afterwards
            unsafe { (self.functions.finalize)() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_are_not_in_place() {
        for address in [begin(&[]).addr(), begin_mut(&mut []).addr(), begin(&[1]).addr()] {
            assert!(address > 4096 && address != usize::MAX);
        }
    }

    #[test]
    fn large_parts_are_cut_and_none_is_lost() {
        for (lengths, most) in [(vec![10, 0, 7], 6), (vec![0, 0], 6), (vec![1], 1), (vec![5, 5, 5, 5], 3)] {
            let mut next = vec![0; lengths.len()];
            for ranges in pieces(&lengths, most) {
                assert!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>() <= most.max(lengths.len()));
                for (next, range) in next.iter_mut().zip(ranges) {
                    assert_eq!(*next, range.start);
                    *next = range.end;
                }
            }
            assert_eq!(next, lengths);
        }
    }
}
