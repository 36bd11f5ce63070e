//! Winograd's minimal filtering F(4×4, 3×3): sixteen results of a 3×3 filter from 36
//! products instead of 144 (Lavin and Gray, "Fast algorithms for convolutional neural
//! networks", 2015; points 0, ±1, ±2, ∞).
//!
//! A tile of 4×4 results reads 6×6 elements `d`. With `V = Bᵀ d B`, `U = G g Gᵀ` and
//! `M = Σ_c U ∘ V`, the results are `Aᵀ M A`.

/// `Bᵀ`, of elements.
pub const INPUT: [[f64; 6]; 6] = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
];

/// `G`, of filters.
pub const FILTER: [[f64; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// `Aᵀ`, of results.
pub const OUTPUT: [[f64; 6]; 4] = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
];

/// Places of a transformed tile.
pub const PLACES: usize = 36;

/// Results of a tile along an axis.
pub const TILE: usize = 4;

/// `U` of a filter's taps, row-major.
pub fn transformed_filter(g: &[f64; 9]) -> [f64; PLACES] {
    let sum = |of: &[f64; 3], v: [f64; 3]| of[0] * v[0] + of[1] * v[1] + of[2] * v[2];
    let mut out = [0.0; PLACES];
    for (row, to) in FILTER.iter().zip(out.as_chunks_mut::<6>().0) {
        let half = [0, 1, 2].map(|x| sum(row, [g[x], g[3 + x], g[6 + x]]));
        *to = FILTER.map(|column| sum(&column, half));
    }
    out
}

/// `V` of 6×6 elements.
pub fn transformed(d: &[f64; PLACES]) -> [f64; PLACES] {
    let mut out = [0.0; PLACES];
    for (place, v) in out.iter_mut().enumerate() {
        let (rows, columns) = (&INPUT[place / 6], &INPUT[place % 6]);
        *v = (0..PLACES)
            .map(|i| rows[i / 6] * d[i] * columns[i % 6])
            .sum();
    }
    out
}

/// The result at `(y, x)` of a tile.
pub fn result(m: &[f64; PLACES], y: usize, x: usize) -> f64 {
    let (rows, columns) = (&OUTPUT[y], &OUTPUT[x]);
    (0..PLACES)
        .map(|i| rows[i / 6] * m[i] * columns[i % 6])
        .sum()
}
