"""Label files as their publishers write them, made up."""

import numpy as np
import pandas as pd


def agiqa3k_table(names: list[str]) -> pd.DataFrame:
    """Return the data.csv of an AGIQA-3K; quality rises from 0.5 to 4.4, alignment falls from 4 to 0.1."""
    return pd.DataFrame(
        {
            "name": names,
            "prompt": [f"prompt {name[-7:-4]}" for name in names],
            "mos_quality": np.linspace(0.5, 4.4, len(names)),
            "std_quality": 0.3,
            "mos_align": np.linspace(4, 0.1, len(names)),
            "std_align": 0.2,
        }
    )
