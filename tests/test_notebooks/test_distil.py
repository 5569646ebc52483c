"""The notebook, from its first cell to its last, with two iterations for each training."""
from __future__ import annotations

from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'notebooks' / 'distil.ipynb'


def test_it_runs_to_its_end(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    for name, value in {'KD_NOTEBOOK_ITERATIONS': '2', 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',
                            resources={'metadata': {'path': str(tmp_path)}}).execute()
    printed = '\n'.join(output.get('text', '') for cell in notebook.cells if cell.cell_type == 'code'
                        for output in cell.outputs)
    assert 'error:' not in printed and 'Traceback' not in printed, printed[-3000:]
    assert 'psnr, distilled minus alone:' in printed and printed.count('Saving models and training states.') == 3
    low = cv2.imread(str(sorted((tmp_path / 'datasets/demo/heldout/LRbicX2').glob('*.png'))[0]))
    assert cv2.imread(str(tmp_path / 'upscaled.png')).shape == (2 * low.shape[0], 2 * low.shape[1], 3)
    assert 'data:image/webp' in (tmp_path / 'report.html').read_text()


def test_it_is_kept_without_outputs():
    nbformat = pytest.importorskip('nbformat')
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == 'code']
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
