"""Bulk generation: a spec and a datalist become a run folder of edited images, each with its record.

The plan, the jobs, the runners, and what reads a finished run: exports, audit and report. One edit is made in ``transforms``.
"""
