//! Memory: the allocator, the code that is kept in it, and how bytes are copied.
//!
//! musl is written to be small. Its allocator is slow under threads, and on x86-64 its `memcpy` is one string instruction of eight bytes a step, which takes a
//! long start: a packet costs a third of what sealing it does each time it is copied, and a header as much. The routine here takes 16 bytes a step with what
//! every x86-64 processor has. It is linked in place of both routines of musl.

#![allow(unsafe_code)] // The routine that all copies end in cannot be written in terms of copies; code pages are told by address.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};

/// It also gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long code stays in memory that is not used again.
const CODE_LIFE: Duration = Duration::from_secs(30);

/// Gives code pages back to the kernel at intervals. What a process runs once, at its start or for a rare request, would count as its
/// memory ever after and is most of what an idle proxy holds. Code in use comes back within microseconds, as long as the page cache has it.
pub(crate) async fn give_back_code_at_intervals() {
    loop {
        tokio::time::sleep(CODE_LIFE).await;
        if let Err(error) = give_back_code() {
            tracing::debug!(%error, "code stays in memory");
            return;
        }
    }
}

fn give_back_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some(code) = executable_around(&maps, give_back_code as *const () as usize) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(code.start)) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // SAFETY: the range is one mapping of a file that nobody can write to through it, so that each of its pages is read from the file
    // again, with the same content, when it is next used.
    unsafe { madvise(start, code.len(), MmapAdvise::MADV_DONTNEED) }.map_err(io::Error::from)
}

/// The mapping of `/proc/PID/maps` (proc(5)) that holds the address, if it is code of a file: readable, executable, and never written to.
fn executable_around(maps: &str, address: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let hexadecimal = |text| usize::from_str_radix(text, 16).ok();
        let range = hexadecimal(from)?..hexadecimal(to)?;
        let of_a_file = words.next()? == "r-xp" && words.nth(3)?.starts_with('/');
        (of_a_file && range.contains(&address)).then_some(range)
    })
}

// `memcpy` and `memmove` (C, System V calling convention): `rdx` bytes from `rsi` to `rdi`, which is returned. What may overlap is read before it is written
// over: up to 128 bytes are all read first; more go upwards if the target is below the source and downwards if it is above, with the far ends read first.
#[cfg(all(target_arch = "x86_64", any(test, target_env = "musl")))]
core::arch::global_asm!(
    ".globl tailwharf_copy",
    ".type tailwharf_copy, @function",
    ".p2align 6",
    "tailwharf_copy:",
    "mov rax, rdi",
    "cmp rdx, 16",
    "jb 40f",
    "movups xmm0, [rsi]",
    "movups xmm7, [rsi + rdx - 16]",
    "cmp rdx, 32",
    "ja 32f",
    "movups [rdi], xmm0",
    "movups [rdi + rdx - 16], xmm7",
    "ret",
    // 33 to 64
    "32:",
    "movups xmm1, [rsi + 16]",
    "movups xmm6, [rsi + rdx - 32]",
    "cmp rdx, 64",
    "ja 33f",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + rdx - 32], xmm6",
    "movups [rdi + rdx - 16], xmm7",
    "ret",
    // 65 to 128
    "33:",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups xmm4, [rsi + rdx - 64]",
    "movups xmm5, [rsi + rdx - 48]",
    "cmp rdx, 128",
    "ja 34f",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "movups [rdi + rdx - 64], xmm4",
    "movups [rdi + rdx - 48], xmm5",
    "movups [rdi + rdx - 32], xmm6",
    "movups [rdi + rdx - 16], xmm7",
    "ret",
    // More: the target's distance above the source tells the direction.
    "34:",
    "mov rcx, rdi",
    "sub rcx, rsi",
    "cmp rcx, rdx",
    "jb 36f",
    // Upwards from where the target is aligned; the last 64 bytes (xmm4 to xmm7) and the first 16 (xmm0) are kept for the end.
    "lea r9, [rdi + rdx - 64]",
    "lea r8, [rdi + 16]",
    "and r8, -16",
    "sub rsi, rdi",
    ".p2align 4",
    "35:",
    "movups xmm1, [rsi + r8]",
    "movups xmm2, [rsi + r8 + 16]",
    "movups xmm3, [rsi + r8 + 32]",
    "movups xmm8, [rsi + r8 + 48]",
    "movaps [r8], xmm1",
    "movaps [r8 + 16], xmm2",
    "movaps [r8 + 32], xmm3",
    "movaps [r8 + 48], xmm8",
    "add r8, 64",
    "cmp r8, r9",
    "jb 35b",
    "movups [r9], xmm4",
    "movups [r9 + 16], xmm5",
    "movups [r9 + 32], xmm6",
    "movups [r9 + 48], xmm7",
    "movups [rdi], xmm0",
    "ret",
    // Downwards from where the target is aligned; the first 64 bytes (xmm0 to xmm3) and the last 16 (xmm7) are kept for the end.
    "36:",
    "lea r9, [rdi + 64]",
    "lea r8, [rdi + rdx - 1]",
    "and r8, -16",
    "sub rsi, rdi",
    ".p2align 4",
    "37:",
    "movups xmm4, [rsi + r8 - 16]",
    "movups xmm5, [rsi + r8 - 32]",
    "movups xmm6, [rsi + r8 - 48]",
    "movups xmm8, [rsi + r8 - 64]",
    "movaps [r8 - 16], xmm4",
    "movaps [r8 - 32], xmm5",
    "movaps [r8 - 48], xmm6",
    "movaps [r8 - 64], xmm8",
    "sub r8, 64",
    "cmp r8, r9",
    "ja 37b",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "movups [rdi + rdx - 16], xmm7",
    "ret",
    // Fewer than 16
    "40:",
    "cmp edx, 8",
    "jb 41f",
    "mov rcx, [rsi]",
    "mov r8, [rsi + rdx - 8]",
    "mov [rdi], rcx",
    "mov [rdi + rdx - 8], r8",
    "ret",
    "41:",
    "cmp edx, 4",
    "jb 42f",
    "mov ecx, [rsi]",
    "mov r8d, [rsi + rdx - 4]",
    "mov [rdi], ecx",
    "mov [rdi + rdx - 4], r8d",
    "ret",
    "42:",
    "test edx, edx",
    "jz 43f",
    // Of three bytes the middle one, of fewer the last once more.
    "mov r10, rdx",
    "shr r10, 1",
    "movzx ecx, byte ptr [rsi]",
    "movzx r8d, byte ptr [rsi + r10]",
    "movzx r9d, byte ptr [rsi + rdx - 1]",
    "mov [rdi], cl",
    "mov [rdi + r10], r8b",
    "mov [rdi + rdx - 1], r9b",
    "43:",
    "ret",
    ".size tailwharf_copy, . - tailwharf_copy",
);

#[cfg(all(target_arch = "x86_64", target_env = "musl"))]
core::arch::global_asm!(
    ".globl memcpy",
    ".globl memmove",
    ".type memcpy, @function",
    ".type memmove, @function",
    ".set memcpy, tailwharf_copy",
    ".set memmove, tailwharf_copy",
);

#[cfg(test)]
mod code_tests {
    use super::*;

    const MAPS: &str = "\
5000-7000 r--p 00000000 fe:00 31 /tailwharf
7000-9000 r-xp 00002000 fe:00 31 /tailwharf
9000-a000 rw-p 00004000 fe:00 31 /tailwharf
b000-c000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn only_code_of_a_file_is_given_back() {
        assert_eq!(executable_around(MAPS, 0x7abc), Some(0x7000..0x9000));
        for elsewhere in [0x5000, 0x9000, 0xb000, 0xd000] {
            assert_eq!(executable_around(MAPS, elsewhere), None);
        }
    }

    #[test]
    fn code_that_was_given_back_still_runs() {
        give_back_code().unwrap();
        assert_eq!(executable_around(MAPS, 0x8fff), Some(0x7000..0x9000));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod copy_tests {
    use std::ffi::c_void;

    unsafe extern "C" {
        fn tailwharf_copy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void;
    }

    /// Every length up to some loops, at every alignment, apart and overlapping by every distance.
    #[test]
    fn bytes_arrive_whole_and_nothing_beside_them_changes() {
        let before: Vec<u8> = (0..900).map(|n| (n * 7 + n / 251) as u8).collect();
        for length in 0..330usize {
            for distance in -150..=150isize {
                let from = 200 + length % 16;
                let to = from.strict_add_signed(distance);
                let mut expected = before.clone();
                expected.copy_within(from..from + length, to);
                let mut bytes = before.clone();
                let start = bytes.as_mut_ptr();
                // SAFETY: both ranges lie within `bytes`, and the routine allows them to overlap.
                let returned =
                    unsafe { tailwharf_copy(start.add(to).cast(), start.add(from).cast(), length) };
                assert_eq!(returned, bytes[to..].as_mut_ptr().cast());
                assert!(bytes == expected, "{length} bytes by {distance}");
            }
        }
    }
}
