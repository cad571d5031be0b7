"""What watches a training, and what does it do?"""
