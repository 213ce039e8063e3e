"""M2CAN, the method alone: torch and nothing of ours.

S. Zhao et al., "Multi-source multi-modal domain adaptation", Information Fusion 117 (2025) 102862.

Every loss term is the term of the *global* batch. A rank holds a slice of each domain's batch; what it computes is its
share, so that the sum of the shares over all ranks is the term and the sum of the shares' gradients is its gradient.
"""
