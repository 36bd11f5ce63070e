//! Matrix instructions of a warp, and copies without bulk.

use super::{Device, bf16, blocks, small, text};

#[test]
fn a_product_through_ldmatrix() {
    // 16 x 16 times 16 x 8 in bf16: A by x4, B (k rows) by x2.trans, from cp.async.
    let body = "
    .reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .f32 %f<4>; .reg .pred %p<2>;
    .shared .align 16 .b8 ta[512]; .shared .align 16 .b8 tb[256];
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [out];
    mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; mov.u32 %r3, ta; add.u32 %r4, %r3, %r2; mov.u32 %r5, tb; add.u32 %r6, %r5, %r2;
    cvt.u64.u32 %rd4, %r2; add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4;
    cp.async.cg.shared.global [%r4], [%rd5], 16;
    setp.lt.u32 %p1, %r1, 16;
    @%p1 cp.async.cg.shared.global [%r6], [%rd6], 16;
    cp.async.wait_all;
    bar.sync 0;
    and.b32 %r7, %r1, 15; shr.u32 %r8, %r1, 4; shl.b32 %r7, %r7, 5; shl.b32 %r8, %r8, 4;
    add.u32 %r7, %r7, %r8; add.u32 %r7, %r7, %r3;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r9, %r10, %r11, %r12}, [%r7];
    and.b32 %r8, %r1, 15; shl.b32 %r8, %r8, 4; add.u32 %r8, %r8, %r5;
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r13, %r14}, [%r8];
    mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r9, %r10, %r11, %r12}, {%r13, %r14}, {%f0, %f1, %f2, %f3};
    shr.u32 %r7, %r1, 2; and.b32 %r8, %r1, 3; mul.wide.u32 %rd4, %r7, 32; mul.wide.u32 %rd5, %r8, 8;
    add.s64 %rd3, %rd3, %rd4; add.s64 %rd3, %rd3, %rd5;
    st.global.v2.f32 [%rd3], {%f0, %f1}; st.global.v2.f32 [%rd3+256], {%f2, %f3};
    ret;";
    let (a, b) = (small(5, 256), small(6, 128));
    let mut device = Device::default();
    device.buffer(&bf16(&a));
    device.buffer(&bf16(&b));
    let out = device.room(512);
    let params = ".param .u64 a, .param .u64 b, .param .u64 out";
    let report = device
        .run(&text("sm_80", params, body), &blocks(1, 32))
        .unwrap();
    let expected: Vec<f32> = (0..128)
        .map(|i| {
            1.0 + (0..16)
                .map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8])
                .sum::<f32>()
        })
        .collect();
    assert_eq!(device.floats(out, 128), expected);
    assert_eq!(report.mma_flops, 2 * 16 * 8 * 16);
    // Rows of 32 bytes: two of eight meet in each bank, in each of four matrices.
    assert_eq!(report.bank_conflicts, 4);
}
