//! Small symmetric matrices in `f64`: what the criteria on patterns and spectra need.

/// `ln det` of a symmetric positive definite matrix `[n, n]`, which is used up (Cholesky).
pub(super) fn log_determinant(matrix: &mut [f64], n: usize) -> f64 {
    let mut sum = 0.0;
    for j in 0..n {
        let pivot = matrix[j * n + j] - (0..j).map(|k| matrix[j * n + k].powi(2)).sum::<f64>();
        let root = pivot.sqrt();
        sum += 2.0 * root.ln();
        matrix[j * n + j] = root;
        for i in j + 1..n {
            let below = matrix[i * n + j] - (0..j).map(|k| matrix[i * n + k] * matrix[j * n + k]).sum::<f64>();
            matrix[i * n + j] = below / root;
        }
    }
    sum
}

/// Eigenvalues of a symmetric matrix `[n, n]`, which is used up (Jacobi rotations), in no order.
pub(super) fn eigenvalues(matrix: &mut [f64], n: usize) -> Vec<f64> {
    /// More than enough: convergence is quadratic.
    const SWEEPS: usize = 30;
    for _ in 0..SWEEPS {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| matrix[i * n + j].powi(2)).sum();
        let diagonal: f64 = (0..n).map(|i| matrix[i * n + i].powi(2)).sum();
        if off <= 1e-24 * diagonal {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(matrix, n, p, q);
            }
        }
    }
    (0..n).map(|i| matrix[i * n + i]).collect()
}

/// Makes element `(p, q)` zero.
fn rotate(matrix: &mut [f64], n: usize, p: usize, q: usize) {
    let element = matrix[p * n + q];
    if element == 0.0 {
        return;
    }
    let theta = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * element);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (a, b) = (matrix[k * n + p], matrix[k * n + q]);
        matrix[k * n + p] = c * a - s * b;
        matrix[k * n + q] = s * a + c * b;
    }
    for k in 0..n {
        let (a, b) = (matrix[p * n + k], matrix[q * n + k]);
        matrix[p * n + k] = c * a - s * b;
        matrix[q * n + k] = s * a + c * b;
    }
}

/// Pearson correlations of vectors of the same length, `[n, n]`; a constant vector correlates with nothing but itself.
pub(super) fn correlations(vectors: &[&[f32]]) -> Vec<f64> {
    let n = vectors.len();
    let unit: Vec<Vec<f64>> = vectors
        .iter()
        .map(|vector| {
            let mean = vector.iter().map(|&v| f64::from(v)).sum::<f64>() / vector.len() as f64;
            let centred: Vec<f64> = vector.iter().map(|&v| f64::from(v) - mean).collect();
            let norm = centred.iter().map(|v| v * v).sum::<f64>().sqrt();
            centred.into_iter().map(|v| if norm > 0.0 { v / norm } else { 0.0 }).collect()
        })
        .collect();
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..i {
            let product = unit[i].iter().zip(&unit[j]).map(|(a, b)| a * b).sum();
            matrix[i * n + j] = product;
            matrix[j * n + i] = product;
        }
        matrix[i * n + i] = 1.0;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn determinants_and_eigenvalues_of_known_matrices() {
        // [[2, 1], [1, 2]]: eigenvalues 1 and 3.
        assert!((log_determinant(&mut [2.0, 1.0, 1.0, 2.0], 2) - 3f64.ln()).abs() < 1e-12);
        let mut values = eigenvalues(&mut [2.0, 1.0, 1.0, 2.0], 2);
        values.sort_by(f64::total_cmp);
        assert!((values[0] - 1.0).abs() < 1e-12 && (values[1] - 3.0).abs() < 1e-12);
    }

    #[test]
    fn both_agree_on_random_matrices() {
        for n in [1, 3, 8, 20] {
            let x: Vec<f64> = crate::kernels::testing::values(n as u64, n * n).into_iter().map(f64::from).collect();
            let mut gram = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    gram[i * n + j] = (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum::<f64>() + f64::from(i == j);
                }
            }
            let product: f64 = eigenvalues(&mut gram.clone(), n).into_iter().map(f64::ln).sum();
            assert!((log_determinant(&mut gram, n) - product).abs() < 1e-9);
        }
    }

    #[test]
    fn correlations_are_between_minus_one_and_one() {
        let (a, b, c) = ([1.0, 2.0, 3.0], [6.0, 4.0, 2.0], [5.0, 5.0, 5.0]);
        let found = correlations(&[&a, &b, &c]);
        let expected = [1.0, -1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12));
    }
}
