"""The ideal ratio mask, computed a second time with PyTorch's STFT."""

import numpy as np
import torch

from jukesep.scoring.metrics import ideal_ratio_mask


def test_the_oracle_masks_an_stft_of_2048_samples_and_hop_512():
    rng = np.random.default_rng(0)
    # Levels that change, so that masks of other frames would be other masks.
    levels = np.repeat(rng.uniform(0.01, 1, (4, 1, 48)), 300, axis=2)
    stems = rng.standard_normal((4, 2, 14_400)) * levels
    found = ideal_ratio_mask(stems.sum(0), stems)

    window = torch.hann_window(2048, dtype=torch.float64)
    shape = {"n_fft": 2048, "hop_length": 512, "window": window}

    def spectrum(signal):
        signal = torch.from_numpy(signal)
        return torch.stft(signal, **shape, pad_mode="constant", return_complex=True)

    magnitudes = [spectrum(stem).abs() for stem in stems]
    mixture = spectrum(stems.sum(0))
    for ours, magnitude in zip(found, magnitudes, strict=True):
        masked = mixture * magnitude / sum(magnitudes)
        theirs = torch.istft(masked, **shape, length=14_400).numpy()
        # The ends are padded in another way.
        np.testing.assert_allclose(ours[:, 2048:-2048], theirs[:, 2048:-2048], atol=1e-4)
