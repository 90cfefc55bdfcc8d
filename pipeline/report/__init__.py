"""From the files of runs to tables, figures and one page. Computes no score."""
