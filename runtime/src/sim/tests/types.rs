//! wgmma of every element type.

use super::hopper::list;
use super::{Device, blocks, random, text};
use crate::sim::{Fault, FaultKind};

/// A type: its name, bytes, the bits of -2 … 2, and the instruction's words.
struct Kind {
    name: &'static str,
    size: usize,
    codes: [u32; 5],
    k: usize,
    sum: &'static str,
    flags: &'static str,
}

const KINDS: [Kind; 7] = [
    Kind {
        name: "f16",
        size: 2,
        codes: [0xc000, 0xbc00, 0, 0x3c00, 0x4000],
        k: 16,
        sum: "f32",
        flags: ", 1, 1, 0, 0",
    },
    Kind {
        name: "f16",
        size: 2,
        codes: [0xc000, 0xbc00, 0, 0x3c00, 0x4000],
        k: 16,
        sum: "f16",
        flags: ", 1, -1, 0, 0",
    },
    Kind {
        name: "tf32",
        size: 4,
        codes: [0xc0000000, 0xbf800000, 0, 0x3f800000, 0x40000000],
        k: 8,
        sum: "f32",
        flags: ", -1, -1",
    },
    Kind {
        name: "e4m3",
        size: 1,
        codes: [0xc0, 0xb8, 0, 0x38, 0x40],
        k: 32,
        sum: "f32",
        flags: ", 1, 1",
    },
    Kind {
        name: "e5m2",
        size: 1,
        codes: [0xc0, 0xbc, 0, 0x3c, 0x40],
        k: 32,
        sum: "f32",
        flags: ", -1, 1",
    },
    Kind {
        name: "s8",
        size: 1,
        codes: [0xfe, 0xff, 0, 1, 2],
        k: 32,
        sum: "s32",
        flags: "",
    },
    Kind {
        name: "u8",
        size: 1,
        codes: [3, 4, 0, 1, 2],
        k: 32,
        sum: "s32",
        flags: "",
    },
];

/// Rows of 32 bytes as two panels of 16 bytes a row, and their values.
fn matrix(kind: &Kind, rows: usize, seed: u64) -> (Vec<u8>, Vec<i32>) {
    let mut next = random(seed);
    let (mut image, mut values) = (vec![0; rows * 32], vec![]);
    for row in 0..rows {
        for k in 0..kind.k {
            let pick = (next() % 5) as usize;
            values.push(if kind.name == "u8" {
                [3, 4, 0, 1, 2][pick]
            } else {
                pick as i32 - 2
            });
            let at = k * kind.size;
            let to = at / 16 * rows * 16 + row * 16 + at % 16;
            image[to..to + kind.size].copy_from_slice(&kind.codes[pick].to_le_bytes()[..kind.size]);
        }
    }
    (image, values)
}

fn run(kind: &Kind, fence: &str) -> Result<(), Box<Fault>> {
    let (a, left) = matrix(kind, 64, 1);
    let (b, right) = matrix(kind, 16, 2);
    let halves = kind.sum == "f16";
    let registers = if halves { 4 } else { 8 };
    let (d, name) = (list("d", registers), kind.name);
    let stores: String = (0..registers)
        .map(|i| format!("st.global.b32 [%rd2+{}], %d{i};\n", 512 * i))
        .collect();
    let set: String = (0..registers)
        .map(|i| format!("mov.b32 %d{i}, %r8;"))
        .collect();
    let ty = if kind.sum == "f32" { "f32" } else { "b32" };
    let (sum, flags, k) = (kind.sum, kind.flags, kind.k);
    let body = format!("
    .reg .b32 %r<12>; .reg .{ty} %d<8>; .reg .b64 %rd<8>; .reg .pred %p<4>; .shared .align 128 .b8 t[2560];
    ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x; mov.u32 %r2, t; shl.b32 %r3, %r1, 2; mov.b32 %r4, 0;
COPY:
    add.u32 %r5, %r3, %r4; cvt.u64.u32 %rd3, %r5; add.s64 %rd3, %rd3, %rd1; ld.global.b32 %r6, [%rd3];
    add.u32 %r7, %r2, %r5; st.shared.b32 [%r7], %r6;
    add.u32 %r4, %r4, 512; setp.lt.u32 %p1, %r4, 2560; @%p1 bra COPY;
    {fence}
    bar.sync 0;
    mov.b32 %r8, 0; {set}
    cvt.u64.u32 %rd4, %r2; shr.u64 %rd4, %rd4, 4; or.b64 %rd5, %rd4, 0x0000000800400000;
    add.s64 %rd6, %rd4, 128; or.b64 %rd6, %rd6, 0x0000000800100000;
    setp.eq.u32 %p2, 0, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k{k}.{sum}.{name}.{name} {{{d}}}, %rd5, %rd6, %p2{flags};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd2, %rd3;
    {stores}
    ret;");
    let mut device = Device::default();
    device.buffer(&[a, b].concat());
    let out = device.room(512 * 8);
    device.run(
        &text("sm_90a", ".param .u64 in, .param .u64 out", &body),
        &blocks(1, 128),
    )?;
    let sign = if kind.flags.matches("-1").count() == 1 {
        -1
    } else {
        1
    };
    let expected = |row: usize, column: usize| {
        let sum: i32 = (0..kind.k)
            .map(|i| left[row * kind.k + i] * right[column * kind.k + i])
            .sum();
        sign * sum
    };
    let words = device.words(out, 128 * registers);
    for thread in 0..128 {
        let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
        for r in 0..registers {
            let word = words[r * 128 + thread];
            let base = 16 * warp + g;
            if halves {
                let half = |v: i32| (super::super::float::to_f16(v as f64)) as u32;
                let (row, column) = (base + 8 * (r % 2), 8 * (r / 2) + 2 * t);
                let both = half(expected(row, column)) | half(expected(row, column + 1)) << 16;
                // -0 and +0 are both sums of nothing.
                assert_eq!(
                    word & !0x8000_8000,
                    both & !0x8000_8000,
                    "{name} {sum} {thread} {r}"
                );
                continue;
            }
            let (row, column) = (base + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * t + r % 2);
            let found = if sum == "s32" {
                word as i32 as f32
            } else {
                f32::from_bits(word)
            };
            assert_eq!(
                found,
                expected(row, column) as f32,
                "{name} {sum} {thread} {r}"
            );
        }
    }
    Ok(())
}

#[test]
fn wgmma_of_every_type() {
    for kind in &KINDS {
        run(kind, "fence.proxy.async;")
            .unwrap_or_else(|f| panic!("{} {}: {f}", kind.name, kind.sum));
    }
}

#[test]
fn stores_that_wgmma_reads_need_a_fence() {
    let fault = run(&KINDS[0], "").unwrap_err();
    assert_eq!(fault.kind, FaultKind::MissingFence, "{fault}");
}
